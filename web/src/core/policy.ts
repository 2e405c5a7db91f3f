/** When a changed drawing is sent: at every change, at the end of a stroke, or when the hand rests. */

export type Policy = "auto" | "change" | "stroke" | "pause";

export const SLOW_MS = 1500;
export const REST_MS = 250;
export const LONGEST_MS = 3000;

export interface Hand {
  /** When the oldest change that was not sent was made, and the newest. */
  since: number;
  last: number;
  /** Whether a stroke is being drawn. */
  drawing: boolean;
}

/** The policy that holds: `auto` waits for a rest where a picture takes long. */
export function effective(policy: Policy, pictureMs: number): Exclude<Policy, "auto"> {
  if (policy !== "auto") return policy;
  return pictureMs > SLOW_MS ? "pause" : "change";
}

/** Whether a changed drawing is to be sent now. */
export function due(policy: Policy, hand: Hand, now: number, pictureMs: number): boolean {
  const held = effective(policy, pictureMs);
  if (held === "change") return true;
  if (held === "stroke") return !hand.drawing;
  return (!hand.drawing && now - hand.last >= REST_MS) || now - hand.since >= LONGEST_MS;
}
