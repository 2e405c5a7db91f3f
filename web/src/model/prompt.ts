/**
 * Prompts as chunks of tokens with weights: `(word)` 1.1 times, `(word:1.3)`, `[word]` 1/1.1 times, BREAK; the twin of
 * fewstep/prompt/emphasis.py and fewstep/models/chunks.py, whose source is AUTOMATIC1111's web interface.
 */

const MORE = 1.1;
const LIMIT = 1000;
const BACK_TO_COMMA = 20;
const NO_MEAN = 1e-4;
const TOKEN = /\\(.?)|([([\])])|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()[\]:]+|:/gsu;
const BREAK = /(?<![\p{L}\p{N}_])BREAK(?![\p{L}\p{N}_])/u;

export interface Span {
  text: string;
  weight: number;
}

export interface Chunk {
  ids: number[];
  weights: number[];
}

type Tokenize = (text: string) => number[];

/** The prompt's passages, between one BREAK and the next. */
export function passages(prompt: string): Span[][] {
  const found: Span[][] = [[]];
  for (const { text, weight } of weighted(prompt)) {
    const [first = "", ...others] = text.split(BREAK);
    found.at(-1)?.push({ text: first, weight });
    found.push(...others.map((other) => [{ text: other, weight }]));
  }
  return found.map(joined);
}

/** Neighbours of one weight as one span; empty ones left out. */
function joined(spans: Span[]): Span[] {
  const found: Span[] = [];
  for (const { text, weight } of spans.filter((span) => span.text)) {
    const last = found.at(-1);
    if (last?.weight === weight) last.text += text;
    else found.push({ text, weight });
  }
  return found;
}

function weighted(prompt: string): Span[] {
  const spans: Span[] = [];
  const opened: Record<string, number[]> = { "(": [], "[": [] };
  const multiply = (start: number | undefined, factor: number) => {
    for (const span of spans.slice(start)) {
      span.weight *= factor;
      if (Math.abs(span.weight) > LIMIT) throw new RangeError(`The prompt gives '${span.text.slice(0, 40)}' a weight beyond ${LIMIT}. Use 0 to 2.`);
    }
  };
  for (const [whole, escaped, sign, number] of prompt.matchAll(TOKEN)) {
    if (sign && opened[sign]) opened[sign].push(spans.length);
    else if ((sign === ")" || number) && opened["("]?.length) multiply(opened["("].pop(), number ? Number(number) : MORE);
    else if (sign === "]" && opened["["]?.length) multiply(opened["["].pop(), 1 / MORE);
    else spans.push({ text: escaped ?? whole, weight: 1 });
  }
  for (const start of opened["("] ?? []) multiply(start, MORE);
  for (const start of opened["["] ?? []) multiply(start, 1 / MORE);
  return spans;
}

/** The prompt as chunks of at most `room` tokens, at least one; a full one goes back to its last comma if that is near. */
export function chunks(prompt: string, tokenize: Tokenize, room: number): Chunk[] {
  const comma = tokenize(",").at(-1) as number;
  const done: Chunk[] = [];
  for (const passage of passages(prompt)) {
    let chunk: Chunk = { ids: [], weights: [] };
    for (const { text, weight } of passage) {
      for (const id of tokenize(text)) {
        if (chunk.ids.length === room) {
          done.push(chunk);
          chunk = rest(chunk, comma, id);
        }
        chunk.ids.push(id);
        chunk.weights.push(weight);
      }
    }
    done.push(chunk);
  }
  if (done.length > 1 && !done.at(-1)?.ids.length) done.pop();
  return done;
}

/** What is taken over from a full chunk into the next: what follows its last comma. */
function rest(full: Chunk, comma: number, next: number): Chunk {
  const last = full.ids.lastIndexOf(comma);
  if (last < 0 || next === comma || full.ids.length - last > BACK_TO_COMMA) return { ids: [], weights: [] };
  return { ids: full.ids.splice(last + 1), weights: full.weights.splice(last + 1) };
}

/** One chunk's states, each token's times its weight, the mean restored; the marks count 1. */
export function emphasised(states: Float32Array, weights: number[], length: number): Float32Array {
  if (weights.every((weight) => weight === 1)) return states;
  const width = states.length / length;
  const after = states.map((value, i) => value * (weights[Math.floor(i / width) - 1] ?? 1));
  const [before, now] = [mean(states), mean(after)];
  const spread = Math.sqrt(mean(states.map((value) => (value - before) ** 2)));
  const factor = Math.abs(before) > NO_MEAN * spread && now !== 0 ? before / now : 1;
  return after.map((value) => value * factor);
}

function mean(values: Float32Array): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
