/** What the page and its engine say to each other. */

import type { Order } from "../model/painter";

export type EngineKind = "wasm" | "webgpu";

export type Asked =
  | { kind: "load"; base: string; engine: EngineKind; threads: number }
  | { kind: "paint"; id: number; order: Order };

export type Said =
  | { kind: "loading"; what: string; share: number }
  | { kind: "ready"; engine: EngineKind; threads: number }
  | { kind: "painted"; id: number; pixels: Uint8ClampedArray<ArrayBuffer>; steps: number; ms: number }
  | { kind: "failed"; id: number | null; why: string };
