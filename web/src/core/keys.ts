/** What a key does. Nothing while somebody types, and nothing with Alt. */

export type Action =
  | { do: "tool"; tool: "brush" | "eraser" | "picker" | "fill" | "line" | "rect" | "ellipse" | "move" }
  | { do: "steps"; steps: number }
  | { do: "undo" | "redo" | "swap" | "snapshot" | "reseed" | "lock" | "pause" | "smaller" | "larger" | "compare" | "fit" | "mask" | "hints" };

export interface Key {
  key: string;
  ctrlKey: boolean;
  metaKey: boolean;
  altKey: boolean;
  shiftKey: boolean;
}

const PLAIN: Record<string, Action> = {
  b: { do: "tool", tool: "brush" },
  e: { do: "tool", tool: "eraser" },
  i: { do: "tool", tool: "picker" },
  g: { do: "tool", tool: "fill" },
  v: { do: "tool", tool: "move" },
  u: { do: "tool", tool: "line" },
  m: { do: "mask" },
  x: { do: "swap" },
  s: { do: "snapshot" },
  r: { do: "reseed" },
  l: { do: "lock" },
  p: { do: "pause" },
  c: { do: "compare" },
  "0": { do: "fit" },
  "[": { do: "smaller" },
  "]": { do: "larger" },
  "?": { do: "hints" },
};

/** The action of a key, or null. `typing`: the focus is in a field for words. */
export function actionOf(key: Key, typing: boolean): Action | null {
  if (typing || key.altKey) return null;
  const letter = key.key.toLowerCase();
  if (key.ctrlKey || key.metaKey) {
    if (letter === "z") return { do: key.shiftKey ? "redo" : "undo" };
    return letter === "y" ? { do: "redo" } : null;
  }
  if (/^[1-8]$/.test(letter)) return { do: "steps", steps: Number(letter) };
  return PLAIN[letter] ?? null;
}
