/** The window of frames that may be on their way: the server opens it when a frame was received. */
export class Credit {
  private window = 0;
  private upto = 0;
  private last = 0;

  /** How many frames may be sent now. */
  get room(): number {
    return Math.max(0, this.window - (this.last - this.upto));
  }

  /** The number of the last frame. */
  get sent(): number {
    return this.last;
  }

  /** The number of the frame that is sent now. */
  next(): number {
    return ++this.last;
  }

  /** The server's word: up to `n` frames that were sent after frame `upto`. Words that come late change nothing. */
  grant(n: number, upto: number): void {
    if (upto < this.upto) return;
    this.window = n;
    this.upto = Math.min(upto, this.last);
  }

  /** After a new connection: what was on its way is lost, and the numbers go on. */
  restart(window: number): void {
    this.window = window;
    this.upto = this.last;
  }

  /** Without a connection nothing may be sent. */
  shut(): void {
    this.window = 0;
    this.upto = this.last;
  }
}
