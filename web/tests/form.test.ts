import { expect, test } from "vitest";
import { fieldsOf, fromHash, read, startValues, toHash } from "../src/core/form";
import { actionOf } from "../src/core/keys";
import type { Schema } from "../src/core/protocol";
import { curl, finishing, order, python } from "../src/core/snippets";

const schema: Schema = {
  properties: {
    prompt: { type: "string", maxLength: 9 },
    negative_prompt: { type: "string", maxLength: 9, default: "" },
    steps: { type: "integer", minimum: 1, maximum: 50 },
    strength: { type: "number", maximum: 1, exclusiveMinimum: 0 },
    seed: { type: "integer", minimum: 0, maximum: 4294967295 },
    width: { type: "integer", minimum: 64, maximum: 2048, multipleOf: 8 },
    sampler: { type: "string" },
    noise: { type: "string", enum: ["fixed", "slow"] },
    refine: { type: "boolean", default: true },
    loras: { type: "array" },
    thing: { type: "object" },
  },
};
const fields = fieldsOf(schema, { sampler: ["LCM"] });
const named = (name: string) => fields.find((field) => field.name === name)!;

test("every property becomes the control of its type, the main ones first", () => {
  expect(fields.map(({ name, kind }) => [name, kind])).toEqual([
    ["strength", "number"], ["steps", "number"], ["seed", "seed"], ["negative_prompt", "words"],
    ["width", "number"], ["sampler", "choice"], ["noise", "choice"], ["refine", "switch"],
  ]);
  expect(named("noise").choices).toEqual(["fixed", "slow"]);
  expect(named("negative_prompt").label).toBe("Negative prompt");
});

test("a slider may end early, its number goes as far as the schema", () => {
  expect(named("steps")).toMatchObject({ low: 1, high: 8, most: 50, step: 1 });
  expect(read(named("steps"), "30")).toBe(30);
  expect(read(named("steps"), "300")).toBe(50);
});

test("typed numbers land on what is allowed", () => {
  expect(read(named("width"), "130")).toBe(128);
  expect(read(named("strength"), "0")).toBe(0.01);
  expect(read(named("strength"), "0.333")).toBe(0.333);
  expect([read(named("steps"), "many"), read(named("steps"), " ")]).toEqual([null, null]);
});

test("a session begins with defaults under what was told, and nothing that the server does not know", () => {
  const values = startValues(schema, { steps: 4 }, { prompt: "x", gone: 1 });
  expect(values).toMatchObject({ prompt: "x", steps: 4, refine: true, strength: null });
  expect(values).not.toHaveProperty("gone");
});

test("settings survive in an address", () => {
  const told = { prompt: "a & b", steps: 3, refine: false, strength: 0.25 };
  expect(fromHash(`#${toHash({ ...told, seed: null, loras: [] })}`, schema)).toEqual(told);
  expect(fromHash("#steps=many&other=1", schema)).toEqual({});
});

const values = { prompt: "it's", loras: [{ name: "ink", weight: 0.5 }, { name: "off", weight: 0 }], steps: 4, guidance: 1.5, strength: 0.3, seed: 0, width: 128, height: 128, sampler: null, clip_skip: 1 };

test("an order is text to image without a picture, image to image with one", () => {
  expect(order(values, null, null)).toEqual({
    path: "/sdapi/v1/txt2img",
    body: { prompt: "it's <lora:ink:0.5>", steps: 4, cfg_scale: 1.5, seed: 0, width: 128, height: 128, override_settings: { fewstep_policy: "respect" } },
  });
  expect(order(values, "AAAA", null)).toMatchObject({ path: "/sdapi/v1/img2img", body: { init_images: ["AAAA"], denoising_strength: 0.3 } });
});

test("finishing takes more steps and twice the size, but no second pass with a mask", () => {
  expect(finishing(order(values, "AAAA", null)).body).toMatchObject({ steps: 8, enable_hr: true, hr_scale: 2 });
  expect(finishing(order({ ...values, steps: 40 }, "AAAA", "BBBB")).body).toMatchObject({ steps: 50, mask: "BBBB" });
  expect(finishing(order(values, "AAAA", "BBBB")).body).not.toHaveProperty("enable_hr");
});

test("curl quotes for a shell, and carries no picture", () => {
  const text = curl(order(values, "AAAA", null), "http://localhost:1");
  expect(text).toContain("it'\\''s");
  expect(text).not.toContain("AAAA");
});

test("Python names what is given, and zero is a seed", () => {
  const text = python(values, true, false);
  expect(text).toContain("seed=0");
  expect(text).toContain('image="input.png"');
  expect(text).not.toContain("mask");
  expect(text).not.toContain("sampler");
});

const key = (letter: string, held = {}) => ({ key: letter, ctrlKey: false, metaKey: false, altKey: false, shiftKey: false, ...held });

test("keys act, but not while somebody types", () => {
  expect(actionOf(key("b"), false)).toEqual({ do: "tool", tool: "brush" });
  expect(actionOf(key("b"), true)).toBeNull();
  expect(actionOf(key("3"), false)).toEqual({ do: "steps", steps: 3 });
  expect(actionOf(key("9"), false)).toBeNull();
  expect(actionOf(key("z", { ctrlKey: true }), false)).toEqual({ do: "undo" });
  expect(actionOf(key("Z", { metaKey: true, shiftKey: true }), false)).toEqual({ do: "redo" });
  expect(actionOf(key("s", { ctrlKey: true }), false)).toBeNull();
});
