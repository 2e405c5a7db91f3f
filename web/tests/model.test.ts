/** The exported page's mathematics against the numbers that Python gives (`python -m tests.export.golden`). */

import { Tokenizer } from "@huggingface/tokenizers";
import { expect, test } from "vitest";
import mergesText from "../../src/fewstep/assets/pictogram/tokenizer/merges.txt?raw";
import vocabText from "../../src/fewstep/assets/pictogram/tokenizer/vocab.json?raw";
import { crc32, infotext, withText } from "../src/model/infotext";
import type { Manifest } from "../src/model/manifest";
import { Noise } from "../src/model/noise";
import { type Order, Painter, type Run } from "../src/model/painter";
import { type Chunk, chunks, emphasised } from "../src/model/prompt";
import { Schedule } from "../src/model/schedule";
import { widened } from "../src/model/weights";
import goldenText from "./golden.json?raw";

const golden = JSON.parse(goldenText);

function close(found: ArrayLike<number>, expected: number[], tolerance = 2e-6): void {
  expect(found.length).toBe(expected.length);
  const worst = Math.max(0, ...Array.from(found, (value, i) => Math.abs(value - (expected[i] as number)) / Math.max(1, Math.abs(expected[i] as number))));
  expect(worst).toBeLessThan(tolerance);
}

test.each<{ seed: number; draws: [number, number[]][] }>(golden.noise)("noise of seed $seed is torch's, draw after draw", ({ seed, draws }) => {
  const noise = new Noise(seed);
  for (const [size, last] of draws) close(noise.normal(size).slice(size - last.length), last);
});

test("fewer than 16 numbers are refused, as they would be others than torch's", () => {
  expect(() => new Noise(0).normal(15)).toThrow("16");
});

test.each(["epsilon", "v_prediction", "sample"] as const)("the clean latents of a network that predicts %s", (kind) => {
  const schedule = new Schedule(golden.alphas_cumprod, kind);
  const [z, output] = [Float32Array.from(latents(1)), Float32Array.from(latents(2))];
  for (const [t, expected] of Object.entries<number[]>(golden.clean[kind])) close(schedule.clean(z, output, Number(t)).slice(0, 6), expected);
  expect(() => schedule.at(20)).toThrow("outside");
});

/** The first numbers of the generator's latents, which the golden file says beside. */
function latents(seed: 1 | 2): number[] {
  return golden.latents[seed - 1];
}

const SIDE = 4;

function model(sampler: string): Manifest {
  const row = [[19], [], [], [19, 14, 9, 4], [], [], [], []];
  const late = [[9], [], [9, 6, 3], [], [], [], [], []];
  return {
    title: "", prompt: "", steps: 4, guidance: 1, strength: 1, size_px: 8 * SIDE, cell_px: 8, channels: 4,
    prediction: "v_prediction", alphas_cumprod: golden.alphas_cumprod, sampler,
    timesteps: Array.from({ length: 100 }, (_, i) => (i === 99 ? row : i === 49 ? late : [[0]])),
    graphs: { text_encoder: "", text_kv: "", unet: "", decoder: "", encoder: "" },
    weights: { file: "", bytes: 0 },
    tokenizer: { file: "", start: 1, end: 2, pad: 3, length: 77 },
    runtime: {} as Manifest["runtime"], settings: [],
  };
}

const order: Order = { prompt: "a", negative: "", steps: 4, guidance: 1, strength: 1, seed: 0, image: null };

/** Networks that are lines; what the decoder got is the result. */
async function painted(sampler: string, some: Partial<Order>): Promise<{ z: Float32Array; asked: string[]; steps: number }> {
  const asked: string[] = [];
  let z: Float32Array = new Float32Array();
  const run: Run = async (graph, inputs) => {
    asked.push(graph);
    if (graph === "unet") {
      const t = Number(inputs.timestep_B?.data[0]);
      return (inputs.z_BCHW?.data as Float32Array).map((value) => 0.3 * value + t / 100);
    }
    if (graph === "encoder") return Float32Array.from(golden.begun.known);
    if (graph === "decoder") {
      z = inputs.z_BCHW?.data as Float32Array;
      return new Float32Array(3 * 64 * SIDE * SIDE).fill(0.5);
    }
    return new Float32Array(77 * 2);
  };
  const painter = new Painter(model(sampler), (text) => [...text].map((letter) => letter.charCodeAt(0)), run);
  const { steps, pixels } = await painter.paint({ ...order, ...some });
  expect([...pixels.slice(0, 4)]).toEqual([191, 191, 191, 255]);
  return { z, asked, steps };
}

test.each<{ sampler: string; seed: number; z: number[] }>(golden.runs)("a run with $sampler ends where Python's does", async ({ sampler, seed, z }) => {
  const found = await painted(sampler, { seed });
  close(found.z, z, 1e-5);
  expect(found.asked.filter((graph) => graph === "unet").length).toBe(4);
});

test("a run from a picture begins at its strength, with its latents noised", async () => {
  const image = new Uint8ClampedArray(4 * 64 * SIDE * SIDE).fill(128);
  const found = await painted("lcm", { image, strength: 0.5, seed: 5, steps: 3 });
  close(found.z, golden.begun.z, 1e-5);
  expect(found.asked[2]).toBe("encoder");
});

test("at full strength nothing is left of the picture, and it is not looked at", async () => {
  const image = new Uint8ClampedArray(4 * 64 * SIDE * SIDE);
  const [from, without] = [await painted("lcm", { image, strength: 1 }), await painted("lcm", {})];
  expect(from.z).toEqual(without.z);
  expect(from.asked).not.toContain("encoder");
});

test("where the strength has fewer timesteps than steps asked for, there are fewer", async () => {
  const image = new Uint8ClampedArray(4 * 64 * SIDE * SIDE);
  expect((await painted("lcm", { image, strength: 0.5, steps: 8 })).steps).toBe(3);
});

test("guidance costs a second evaluation a step, of the negative prompt; at exactly 1 none", async () => {
  const count = async (guidance: number) => (await painted("lcm", { guidance, negative: "b" })).asked.filter((graph) => graph === "unet").length;
  expect([await count(1), await count(1.5)]).toEqual([4, 8]);
});

test("tokens and weights of prompts are Python's", () => {
  const [, ...merges] = mergesText.trimEnd().split("\n");
  const bpe = { ...golden.tokenizer.model, vocab: JSON.parse(vocabText), merges: merges.map((line: string) => line.split(" ")) };
  const tokenizer = new Tokenizer({ ...golden.tokenizer, model: bpe }, {});
  const tokenize = (text: string) => tokenizer.encode(text, { add_special_tokens: false }).ids;
  for (const { prompt, chunks: expected } of golden.chunks as { prompt: string; chunks: Chunk[] }[]) {
    const found = chunks(prompt, tokenize, 75);
    expect([prompt, found.map(({ ids }) => ids)]).toEqual([prompt, expected.map(({ ids }) => ids)]);
    close(found.flatMap(({ weights }) => weights), expected.flatMap(({ weights }) => weights));
  }
});

test("a weight beyond reason is refused", () => {
  expect(() => chunks("(a:2000)", () => [1], 75)).toThrow("beyond 1000");
});

test.each<{ weights: number[]; before: number[]; after: number[] }>(golden.emphasised)("states with weights $weights", ({ weights, before, after }) => {
  close(emphasised(Float32Array.from(before), weights, 5), after);
});

test("halves become the floats they are", () => {
  expect([...widened(Uint16Array.from(golden.halves.bits))]).toEqual(golden.halves.values.map(Math.fround));
});

test("a picture's settings are written as Python writes them, and lie in a chunk of their own", () => {
  const settings: [string, string][] = [["Steps", "4"], ["Sampler", "LCM"], ["Seed", "7"], ["Model", 'odd "name'], ["Loras", "lcm-lora: 1"]];
  expect(infotext("a cat, 3d", "dull, grey", settings)).toBe(golden.infotext);
  expect(crc32(new TextEncoder().encode("IEND"))).toBe(0xae426082); // every PNG's last chunk
  const png = withText(new Uint8Array(60).fill(7), "été");
  expect(png.length).toBe(60 + 12 + "parameters".length + 5 + 5);
  expect([...png.slice(-27)].every((byte) => byte === 7)).toBe(true);
});
