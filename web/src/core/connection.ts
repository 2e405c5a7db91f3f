/** The live socket: tickets, greeting, credit, parameters with revisions, and coming back after a broken line. */

import { Credit } from "./credit";
import { type Hello, Kind, packed, PROTOCOL, type Picture, type ServerMessage, unpacked, type Values } from "./protocol";

export type State = "off" | "connecting" | "live" | "waiting" | "locked" | "refused";

/** What this needs of a WebSocket. */
export interface Wire {
  binaryType: string;
  readonly bufferedAmount: number;
  onopen: (() => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  send(data: string | Uint8Array<ArrayBuffer>): void;
  close(): void;
}

export interface Doors {
  /** A ticket for one socket; throws `Locked` where the server wants its key. */
  ticket(): Promise<string>;
  open(ticket: string, protocol: string): Wire;
  hello(): Hello;
  /** Every value the page has, for a session that does not know them. */
  values(): Values;
  later(run: () => void, ms: number): () => void;
}

export interface Ears {
  state(state: State, why: string): void;
  message(message: ServerMessage): void;
  picture(picture: Picture): void;
  /** A change of these parameters was not taken. */
  refused(names: string[]): void;
}

/** The server wants its key before it gives a ticket. */
export class Locked extends Error {}

const BACKOFF_MS = [300, 800, 2000, 4000, 8000];
const BUFFER_BYTES = 512 * 1024;
const GATHER_MS = 25;
const REFUSED = 4400;
const ELSEWHERE = 4409;

/** Milliseconds to wait before try number `failures`, counted from 1. */
export function backoff(failures: number, random = Math.random()): number {
  const base = BACKOFF_MS[Math.min(failures, BACKOFF_MS.length) - 1] ?? 0;
  return base * (0.8 + 0.4 * random);
}

export class Connection {
  revision = 0;
  private wire: Wire | null = null;
  private credit = new Credit();
  private token = "";
  private live = false;
  private wanted = false;
  private failures = 0;
  private attempt = 0;
  private acknowledged = 0;
  /** After a refused greeting: without values, so that one wrong value cannot lock the page out. */
  private plain = false;
  private patch: Values = {};
  private unanswered: { revision: number; patch: Values }[] = [];
  private stopGathering: (() => void) | null = null;
  private stopWaiting: (() => void) | null = null;

  constructor(private doors: Doors, private ears: Ears) {}

  /** Begin, or begin again at once. */
  start(): void {
    this.wanted = true;
    this.failures = 0;
    this.drop();
    void this.connect();
  }

  /** End the session. */
  stop(): void {
    this.wanted = false;
    this.say({ type: "bye" });
    this.token = "";
    this.drop();
    this.tell("off", "");
  }

  /** The revision that the next pictures should have; a refused one does not count. */
  get expected(): number {
    return this.unanswered.at(-1)?.revision ?? this.acknowledged;
  }

  /** Whether changes wait to be sent. */
  get gathering(): boolean {
    return Object.keys(this.patch).length > 0;
  }

  /** Whether a frame may be sent now: there is credit, and the line is not full. */
  get free(): boolean {
    return this.live && this.credit.room > 0 && (this.wire?.bufferedAmount ?? 0) < BUFFER_BYTES;
  }

  /** Send a frame; its number, or 0 when the line broke meanwhile. */
  frame(codec: number, payload: Uint8Array, senderMs: number): number {
    if (!this.live) return 0;
    const seq = this.credit.next();
    this.wire?.send(packed({ kind: Kind.input, codec, seq, revision: this.revision, senderMs }, payload));
    return seq;
  }

  /** Send the mask that holds from the next frame on; whether it went out. */
  mask(codec: number, payload: Uint8Array): boolean {
    if (!this.live) return false;
    this.wire?.send(packed({ kind: Kind.mask, codec, seq: this.credit.sent, revision: this.revision }, payload));
    return true;
  }

  /** Change parameters; changes that follow each other closely go together. Returns the revision that has them. */
  change(patch: Values): number {
    Object.assign(this.patch, patch);
    this.stopGathering ??= this.doors.later(() => this.flush(), GATHER_MS);
    return this.revision + 1;
  }

  /** Output `seq` is on the screen. */
  shown(seq: number): void {
    this.say({ type: "ack", seq });
  }

  snapshot(): void {
    this.say({ type: "snapshot" });
  }

  pause(on: boolean): void {
    this.say({ type: "pause", on });
  }

  private flush(empty = false): void {
    this.stopGathering?.();
    this.stopGathering = null;
    if (!this.live || !(empty || this.gathering)) return;
    this.revision += 1;
    this.unanswered.push({ revision: this.revision, patch: this.patch });
    this.say({ type: "params", rev: this.revision, patch: this.patch });
    this.patch = {};
  }

  private async connect(): Promise<void> {
    const attempt = ++this.attempt;
    this.tell("connecting", "");
    try {
      const ticket = await this.doors.ticket();
      if (attempt === this.attempt && this.wanted) this.listen(this.doors.open(ticket, PROTOCOL));
    } catch (error) {
      if (attempt !== this.attempt) return;
      if (error instanceof Locked) this.tell("locked", error.message);
      else this.retry(error instanceof Error ? error.message : String(error));
    }
  }

  private listen(wire: Wire): void {
    this.wire = wire;
    wire.binaryType = "arraybuffer";
    wire.onopen = () => {
      const resume = this.token ? { resume_token: this.token } : {};
      const values = this.plain ? {} : { values: this.doors.values() };
      wire.send(JSON.stringify({ type: "hello", proto: PROTOCOL, ...this.doors.hello(), ...values, ...resume }));
    };
    wire.onmessage = ({ data }) => (typeof data === "string" ? this.heard(JSON.parse(data)) : this.ears.picture(unpacked(data as ArrayBuffer)));
    wire.onclose = ({ code, reason }) => {
      if (this.wire !== wire) return;
      this.drop();
      this.plain = code === REFUSED;
      if (code === ELSEWHERE) this.tell("refused", "This session goes on in another window.");
      else if (this.wanted) this.retry(reason || "The connection broke.");
    };
  }

  private heard(message: ServerMessage): void {
    if (message.type === "welcome") this.welcomed(message.resume_token, message.rev, message.limits.window);
    if (message.type === "credit") this.credit.grant(message.n, message.upto);
    if (message.type === "params_ack") this.answered((revision) => revision <= message.rev, message.rev);
    if (message.type === "error" && message.code === "params") this.refuse(message.rev);
    this.ears.message(message);
    if (message.type === "welcome") this.tell("live", "");
  }

  private refuse(revision: number | undefined): void {
    const names = this.unanswered.filter((one) => one.revision === revision).flatMap(({ patch }) => Object.keys(patch));
    this.answered((one) => one === revision, 0);
    this.ears.refused(names.filter((name) => !(name in this.patch)));
  }

  private answered(which: (revision: number) => boolean, taken: number): void {
    this.unanswered = this.unanswered.filter(({ revision }) => !which(revision));
    this.acknowledged = Math.max(this.acknowledged, taken);
  }

  private welcomed(token: string, revision: number, window: number): void {
    const known = this.token === token && this.token !== "";
    this.token = token;
    this.live = true;
    this.failures = 0;
    this.revision = Math.max(this.revision, revision);
    this.credit.restart(Math.min(2, window || 2));
    const lost = Object.assign({}, ...this.unanswered.map(({ patch }) => patch), this.patch) as Values;
    this.unanswered = [];
    this.acknowledged = revision;
    this.patch = !known && this.plain ? { ...this.doors.values(), ...lost } : lost;
    this.flush(!known); // a new session is asked what its values come to
  }

  private retry(why: string): void {
    this.failures += 1;
    const wait = backoff(this.failures);
    this.tell("waiting", why);
    this.stopWaiting = this.doors.later(() => void this.connect(), wait);
  }

  private drop(): void {
    const wire = this.wire;
    this.wire = null;
    this.live = false;
    this.credit.shut();
    this.attempt += 1;
    this.stopWaiting?.();
    this.stopWaiting = null;
    if (wire) {
      wire.onopen = wire.onmessage = wire.onclose = null;
      wire.close();
    }
  }

  private say(message: object): void {
    if (this.live) this.wire?.send(JSON.stringify(message));
  }

  private tell(state: State, why: string): void {
    this.ears.state(state, why);
  }
}
