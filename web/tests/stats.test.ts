import { describe, expect, test } from "vitest";
import { cut, WHOLE } from "../src/core/capture";
import { due, effective } from "../src/core/policy";
import { Flag, type Picture } from "../src/core/protocol";
import { Delay, Median, Rate, settling } from "../src/core/stats";

const picture = (fields: Partial<Picture>): Picture => ({ kind: 2, codec: 1, flags: 0, seq: 1, revision: 0, senderMs: 0, sourceSeq: 0, serverMs: 0, queueMs: 0, payload: new Uint8Array(1), ...fields });

test("a rate counts the last two seconds", () => {
  const rate = new Rate();
  for (let ms = 0; ms < 4000; ms += 100) rate.mark(ms);
  expect(rate.per_s(4000)).toBe(9.5);
  expect(rate.per_s(9000)).toBe(0);
});

test("one slow picture does not move the median", () => {
  const median = new Median(3);
  expect(median.value).toBeNull();
  [50, 900, 52].forEach((ms) => median.add(ms));
  expect(median.value).toBe(52);
  [60, 61].forEach((ms) => median.add(ms));
  expect(median.value).toBe(60);
});

test("the delay counts a frame's first picture, a change's first picture, and nothing twice", () => {
  const delay = new Delay();
  expect(delay.shown(picture({ sourceSeq: 1, senderMs: 1000 }), 1060)).toBe(60);
  expect(delay.shown(picture({ sourceSeq: 1, senderMs: 1000 }), 5000)).toBeNull();
  delay.changed(7, 6000);
  expect(delay.shown(picture({ sourceSeq: 1, senderMs: 1000, revision: 7 }), 6090)).toBe(90);
  expect(delay.shown(picture({ sourceSeq: 2, senderMs: 6000, revision: 7, flags: Flag.refined }), 9000)).toBeNull();
});

describe("settling", () => {
  const last = { flags: Flag.final, revision: 3, sourceSeq: 5 };
  test.each([
    ["all is answered", last, 3, 5, false, false],
    ["not final", { ...last, flags: 0 }, 3, 5, false, true],
    ["newer parameters", last, 4, 5, false, true],
    ["a newer frame", last, 3, 6, false, true],
    ["something not sent", last, 3, 5, true, true],
    ["nothing yet, nothing asked", null, 0, 0, false, false],
  ])("%s", (_name, shown, revision, sent, waiting, expected) => {
    expect(settling(shown, revision, sent, waiting)).toBe(expected);
  });
});

describe("policy", () => {
  const drawing = { since: 1000, last: 1900, drawing: true };
  const resting = { since: 1000, last: 1900, drawing: false };
  test.each([
    ["change", drawing, 1900, 0, true],
    ["stroke", drawing, 1900, 0, false],
    ["stroke", resting, 1900, 0, true],
    ["pause", resting, 2000, 0, false],
    ["pause", resting, 2150, 0, true],
    ["pause", drawing, 2150, 0, false],
    ["pause", drawing, 4000, 0, true],
    ["auto", drawing, 1900, 1400, true],
    ["auto", drawing, 1900, 1600, false],
  ] as const)("%s, %o at %d with pictures of %d ms", (policy, hand, now, ms, expected) => {
    expect(due(policy, hand, now, ms)).toBe(expected);
  });

  test("auto waits for rests only where pictures are slow", () => {
    expect([effective("auto", 100), effective("auto", 2000), effective("stroke", 2000)]).toEqual(["change", "pause", "stroke"]);
  });
});

test("a crop is cut to the ratio of the picture", () => {
  expect(cut({ width: 1000, height: 500 }, WHOLE, { width: 64, height: 64 })).toEqual({ x: 250, y: 0, width: 500, height: 500 });
  expect(cut({ width: 1000, height: 500 }, { x: 0.5, y: 0, width: 0.5, height: 0.5 }, { width: 64, height: 64 })).toEqual({ x: 625, y: 0, width: 250, height: 250 });
});
