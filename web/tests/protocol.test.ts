import { expect, test } from "vitest";
import { Codec, Flag, HEADER_BYTES, Kind, packed, unpacked } from "../src/core/protocol";

const payload = new Uint8Array([9, 8, 7]);

test("a header is 24 little-endian bytes in the order of docs/live.md", () => {
  const bytes = packed({ kind: Kind.input, codec: Codec.png, seq: 0x01020304, revision: 5, senderMs: 6, sourceSeq: 7, serverMs: 1.5, queueMs: 0.2 }, payload);
  expect([...bytes]).toEqual([1, 1, 3, 0, 4, 3, 2, 1, 5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0, 15, 0, 2, 0, 9, 8, 7]);
});

test("what is packed is unpacked", () => {
  const header = { kind: Kind.output, codec: Codec.jpeg, flags: Flag.final | Flag.refined, seq: 2 ** 32 - 1, revision: 3, senderMs: 99, sourceSeq: 12, serverMs: 41.3, queueMs: 0.1 };
  expect(unpacked(packed(header, payload).buffer)).toEqual({ ...header, payload });
});

test("times that do not fit are the largest number", () => {
  expect(unpacked(packed({ kind: 2, codec: 1, seq: 1, serverMs: 1e6, queueMs: -1 }, payload).buffer)).toMatchObject({ serverMs: 6553.5, queueMs: 0 });
});

test.each([
  [new Uint8Array(HEADER_BYTES), /header alone/],
  [new Uint8Array(HEADER_BYTES + 1).fill(2), /version 2/],
])("bytes that are no picture are refused", (bytes, sentence) => {
  expect(() => unpacked(bytes.buffer)).toThrow(sentence);
});
