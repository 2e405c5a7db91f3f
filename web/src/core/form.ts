/** A form's fields from the server's JSON schema. */

import type { Property, Schema, Values } from "./protocol";

export interface Field {
  name: string;
  label: string;
  help: string;
  kind: "words" | "number" | "choice" | "switch" | "seed" | "text";
  /** The limits of the slider; the number beside it may go to `least` and `most`. */
  low: number;
  high: number;
  step: number;
  least: number;
  most: number;
  whole: boolean;
  choices: string[];
  main: boolean;
}

/** Sliders that end earlier than what is allowed, because that is where the fine part is. */
const USUAL: Record<string, [number, number]> = { steps: [1, 8], guidance: [1, 4], width: [64, 1024], height: [64, 1024], clip_skip: [1, 4] };
const FIRST = ["strength", "steps", "guidance", "seed"];
const ELSEWHERE = ["prompt", "loras"];

/** The fields, those that are used most first; the prompt and the LoRAs have places of their own. */
export function fieldsOf(schema: Schema, known: Record<string, string[]> = {}): Field[] {
  const names = Object.keys(schema.properties).filter((name) => !ELSEWHERE.includes(name));
  const order = (name: string) => (FIRST.indexOf(name) + 1 || FIRST.length + 1);
  return names.sort((a, b) => order(a) - order(b)).flatMap((name) => {
    const property = schema.properties[name];
    return property ? fieldOf(name, property, known[name] ?? []) : [];
  });
}

function fieldOf(name: string, property: Property, known: string[]): Field[] {
  const whole = property.type === "integer";
  const least = property.minimum ?? property.exclusiveMinimum ?? 0;
  const most = property.maximum ?? 1;
  const usual = USUAL[name];
  const step = property.multipleOf ?? (whole ? 1 : 0.01);
  const low = Math.max(least, usual?.[0] ?? least, property.exclusiveMinimum === undefined ? least : least + step);
  const choices = property.enum ?? known;
  const kind = kindOf(name, property, choices);
  const label = name.replaceAll("_", " ");
  const shared = { name, label: label[0]?.toUpperCase() + label.slice(1), help: property.description ?? "", main: FIRST.includes(name) };
  return kind ? [{ ...shared, kind, low, high: Math.min(most, usual?.[1] ?? most), step, least: Math.min(low, least || low), most, whole, choices }] : [];
}

function kindOf(name: string, property: Property, choices: string[]): Field["kind"] | null {
  if (name === "seed") return "seed";
  if (property.type === "boolean") return "switch";
  if (property.type === "integer" || property.type === "number") return "number";
  if (property.type !== "string") return null;
  if (choices.length) return "choice";
  return property.maxLength !== undefined ? "words" : "text";
}

/** A typed number as the field takes it: inside its limits, on its steps; null where it is none. */
export function read(field: Field, typed: string): number | null {
  const number = Number(typed);
  if (typed.trim() === "" || !Number.isFinite(number)) return null;
  const inside = Math.min(field.most, Math.max(field.least, number));
  return field.whole ? Math.round(inside / field.step) * field.step : Math.round(inside * 1000) / 1000;
}

/** What a session begins with: what the server says it has, under what the page was told before. */
export function startValues(schema: Schema, defaults: Values, told: Values): Values {
  const known = Object.keys(schema.properties);
  const own = Object.fromEntries(known.map((name) => [name, defaults[name] ?? schema.properties[name]?.default ?? null]));
  return { ...own, ...Object.fromEntries(Object.entries(told).filter(([name]) => known.includes(name))) };
}

/** A seed that nobody has chosen. */
export function anySeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
}

/** Parameters as the part of an address after #, and back; only names that the schema knows are read. */
export function toHash(values: Values): string {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== "" && typeof value !== "object");
  return new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
}

export function fromHash(hash: string, schema: Schema): Values {
  const found: Values = {};
  for (const [name, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    const property = schema.properties[name];
    if (!property) continue;
    if (property.type === "string") found[name] = text;
    else if (property.type === "boolean") found[name] = text === "true";
    else if (property.type !== "array" && Number.isFinite(Number(text))) found[name] = Number(text);
  }
  return found;
}
