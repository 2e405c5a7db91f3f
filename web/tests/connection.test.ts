import { beforeEach, expect, test } from "vitest";
import { backoff, Connection, Locked, type State, type Wire } from "../src/core/connection";
import { packed, type Picture, PROTOCOL, type ServerMessage, type Values } from "../src/core/protocol";

class FakeWire implements Wire {
  binaryType = "";
  bufferedAmount = 0;
  onopen: Wire["onopen"] = null;
  onmessage: Wire["onmessage"] = null;
  onclose: Wire["onclose"] = null;
  texts: Record<string, unknown>[] = [];
  frames: Uint8Array[] = [];
  closed = false;

  send(data: string | Uint8Array<ArrayBuffer>): void {
    if (typeof data === "string") this.texts.push(JSON.parse(data));
    else this.frames.push(data);
  }

  close(): void {
    this.closed = true;
  }

  hears(message: object): void {
    this.onmessage?.({ data: JSON.stringify(message) });
  }
}

let wires: FakeWire[];
let timers: { run: () => void; ms: number; over: boolean }[];
let states: State[];
let messages: ServerMessage[];
let pictures: Picture[];
let values: Values;
let refusal: Error | null;
let refused: string[][];

function connection(): Connection {
  const doors = {
    ticket: () => (refusal ? Promise.reject(refusal) : Promise.resolve("word")),
    open: (ticket: string, protocol: string) => {
      expect([ticket, protocol]).toEqual(["word", PROTOCOL]);
      wires.push(new FakeWire());
      return wires.at(-1) as FakeWire;
    },
    hello: () => ({ mode: "canvas" as const, w: 128, h: 128, fps: 30 }),
    values: () => values,
    later: (run: () => void, ms: number) => {
      const timer = { run, ms, over: false };
      timers.push(timer);
      return () => void (timer.over = true);
    },
  };
  return new Connection(doors, { state: (state) => states.push(state), message: (message) => messages.push(message), picture: (picture) => pictures.push(picture), refused: (names) => refused.push(names) });
}

const settle = () => new Promise((resolve) => setTimeout(resolve));

function ring(): void {
  for (const timer of timers.splice(0)) if (!timer.over) timer.run();
}

function welcome(token: string, rev = 0) {
  return { type: "welcome", session: "s", resume_token: token, model: "m", limits: { window: 2 }, schema: { properties: {} }, values: {}, rev };
}

async function started(line: Connection, token = "first", rev = 0): Promise<FakeWire> {
  line.start();
  return welcomed(token, rev);
}

async function welcomed(token: string, rev = 0): Promise<FakeWire> {
  await settle();
  const wire = wires.at(-1) as FakeWire;
  wire.onopen?.();
  wire.hears(welcome(token, rev));
  return wire;
}

beforeEach(() => {
  [wires, timers, states, messages, pictures, refused] = [[], [], [], [], [], []];
  [values, refusal] = [{ prompt: "an apple" }, null];
});

test("it greets with its values, and asks a new session what they come to", async () => {
  const wire = await started(connection());
  expect(wire.binaryType).toBe("arraybuffer");
  expect(wire.texts).toEqual([
    { type: "hello", proto: PROTOCOL, mode: "canvas", w: 128, h: 128, fps: 30, values },
    { type: "params", rev: 1, patch: {} },
  ]);
  expect(states).toEqual(["connecting", "live"]);
});

test("frames wait for credit, which receipts give", async () => {
  const line = connection();
  const wire = await started(line);
  const send = () => line.frame(1, new Uint8Array([1]), 7);
  expect([send(), send(), line.free]).toEqual([1, 2, false]);
  wire.hears({ type: "credit", n: 2, upto: 1 });
  expect([line.free, send(), line.free]).toEqual([true, 3, false]);
  wire.hears({ type: "credit", n: 6, upto: 3 });
  wire.hears({ type: "credit", n: 2, upto: 2 }); // came late
  expect(line.free).toBe(true);
  wire.bufferedAmount = 2 ** 20; // the line is full
  expect(line.free).toBe(false);
  expect(new DataView(wire.frames[2]!.buffer).getUint32(4, true)).toBe(3);
});

test("changes that follow closely go together, with rising revisions", async () => {
  const line = connection();
  const wire = await started(line, "first", 4);
  ring();
  line.change({ steps: 2 });
  line.change({ steps: 3, seed: 1 });
  ring();
  expect(wire.texts.slice(1)).toEqual([
    { type: "params", rev: 5, patch: {} },
    { type: "params", rev: 6, patch: { steps: 3, seed: 1 } },
  ]);
  expect(line.expected).toBe(6);
});

test("a refused change is not waited for", async () => {
  const line = connection();
  const wire = await started(line);
  wire.hears({ type: "params_ack", rev: 1, effective: {}, warnings: [] });
  line.change({ steps: 99, seed: 1 });
  ring();
  expect(line.expected).toBe(2);
  line.change({ seed: 2 }); // what was changed again meanwhile is not taken back
  wire.hears({ type: "error", code: "params", message: "steps is 99", rev: 2 });
  expect(line.expected).toBe(1);
  expect(refused).toEqual([["steps"]]);
});

test("a broken line is taken up again with the token; what was not answered is sent again", async () => {
  const line = connection();
  const wire = await started(line);
  wire.hears({ type: "params_ack", rev: 1, effective: {}, warnings: [] });
  line.change({ steps: 3 });
  ring();
  wire.onclose?.({ code: 1006, reason: "" });
  line.change({ seed: 5 });
  expect([line.free, states.at(-1)]).toEqual([false, "waiting"]);
  ring();
  const next = await welcomed("first", 1);
  ring();
  expect(next).not.toBe(wire);
  expect(next.texts[0]).toMatchObject({ type: "hello", resume_token: "first" });
  expect(next.texts.slice(1)).toEqual([{ type: "params", rev: 3, patch: { steps: 3, seed: 5 } }]);
  expect(line.free).toBe(true);
});

test("frames that were lost with a line hold nothing up, and numbers go on", async () => {
  const line = connection();
  const wire = await started(line);
  line.frame(1, new Uint8Array([1]), 0);
  line.frame(1, new Uint8Array([1]), 0);
  wire.onclose?.({ code: 1006, reason: "" });
  ring();
  await welcomed("first");
  expect([line.free, line.frame(1, new Uint8Array([1]), 0)]).toEqual([true, 3]);
});

test("a greeting that was refused is repeated without values, which then go as a change", async () => {
  const line = connection();
  line.start();
  await settle();
  wires[0]?.onopen?.();
  wires[0]?.onclose?.({ code: 4400, reason: "steps is 99" });
  ring();
  const next = await welcomed("first");
  ring();
  expect(next.texts[0]).not.toHaveProperty("values");
  expect(next.texts[1]).toEqual({ type: "params", rev: 1, patch: values });
});

test("without the key it says so and does not try again", async () => {
  refusal = new Locked("wants its key");
  connection().start();
  await settle();
  expect([states, timers]).toEqual([["connecting", "locked"], []]);
});

test("a session that goes on elsewhere is left there", async () => {
  const wire = await started(connection());
  ring();
  wire.onclose?.({ code: 4409, reason: "" });
  expect([states.at(-1), timers]).toEqual(["refused", []]);
});

test("bye ends the session, and what comes later is not heard", async () => {
  const line = connection();
  const wire = await started(line);
  line.stop();
  expect([wire.texts.at(-1), wire.closed, wire.onmessage, states.at(-1)]).toEqual([{ type: "bye" }, true, null, "off"]);
});

test("pictures are handed on", async () => {
  const wire = await started(connection());
  wire.onmessage?.({ data: packed({ kind: 2, codec: 1, seq: 8 }, new Uint8Array([1])).buffer });
  expect(pictures.map(({ seq }) => seq)).toEqual([8]);
});

test("tries come later and later, and not all at once", () => {
  const waits = [1, 2, 3, 4, 5, 50].map((failures) => backoff(failures, 0.5));
  expect(waits).toEqual([300, 800, 2000, 4000, 8000, 8000]);
  expect(backoff(1, 0)).toBeCloseTo(240);
  expect(backoff(1, 1)).toBeCloseTo(360);
});
