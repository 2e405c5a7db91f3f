/** Figures that the page measures itself: rates over the last two seconds, milliseconds from hand to eye. */

import type { Picture } from "./protocol";
import { Flag } from "./protocol";

const SPAN_MS = 2000;

/** How often something happens in a second. */
export class Rate {
  private times: number[] = [];

  mark(now: number): void {
    this.times.push(now);
  }

  per_s(now: number): number {
    this.times = this.times.filter((time) => time > now - SPAN_MS);
    return this.times.length / (SPAN_MS / 1000);
  }
}

/** The median of the last values, so that one slow picture does not shake the display. */
export class Median {
  private values: number[] = [];

  constructor(private keep = 9) {}

  add(value: number): void {
    this.values = [...this.values, value].slice(-this.keep);
  }

  get value(): number | null {
    if (!this.values.length) return null;
    const sorted = [...this.values].sort((a, b) => a - b);
    return sorted[sorted.length >> 1] ?? null;
  }
}

/** From hand to eye: a frame's first picture counts from the frame, a new revision's first one from the change. */
export class Delay {
  readonly median = new Median();
  private source = 0;
  private revision = 0;
  private sent = new Map<number, number>();

  /** Parameters of this revision were changed now. */
  changed(revision: number, now: number): void {
    if (!this.sent.has(revision)) this.sent.set(revision, now);
  }

  /** The delay of a picture that is shown now; null where it answers nothing new. */
  shown(picture: Picture, now: number): number | null {
    if (picture.flags & Flag.refined) return null;
    const asked = this.sent.get(picture.revision);
    for (const revision of [...this.sent.keys()]) if (revision <= picture.revision) this.sent.delete(revision);
    let ms: number | null = null;
    if (picture.sourceSeq > this.source) ms = (now >>> 0) - picture.senderMs;
    else if (picture.revision > this.revision && asked !== undefined) ms = now - asked;
    this.source = Math.max(this.source, picture.sourceSeq);
    this.revision = Math.max(this.revision, picture.revision);
    if (ms !== null && ms >= 0) this.median.add(ms);
    return ms;
  }
}

/** Whether more is to come: the newest picture is not final, or not of the newest frame and revision. */
export function settling(shown: Pick<Picture, "flags" | "revision" | "sourceSeq"> | null, revision: number, sent: number, waiting: boolean): boolean {
  if (!shown) return waiting;
  return waiting || !(shown.flags & Flag.final) || shown.revision < revision || shown.sourceSeq < sent;
}
