/** Messages of the live socket, `fewstep.live.v1`: docs/live.md says what they mean. */

export const PROTOCOL = "fewstep.live.v1";
export const HEADER_BYTES = 24;
const VERSION = 1;

export const Kind = { input: 1, output: 2, preview: 3, mask: 4 } as const;
export const Codec = { jpeg: 1, webp: 2, png: 3 } as const;
export const Flag = { final: 2, refined: 4 } as const;

export type Mode = "canvas" | "camera" | "screen" | "video" | "prompt";
export type Values = Record<string, unknown>;

/** The header of a binary message; times are milliseconds. */
export interface Header {
  kind: number;
  codec: number;
  flags: number;
  seq: number;
  revision: number;
  senderMs: number;
  sourceSeq: number;
  serverMs: number;
  queueMs: number;
}

export interface Picture extends Header {
  payload: Uint8Array<ArrayBuffer>;
}

export interface Hello {
  mode: Mode;
  w: number;
  h: number;
  fps: number;
}

/** What the server says once a second. */
export interface ServerStats {
  fps_in: number;
  fps_out: number;
  dropped: number;
  unchanged: number;
  p50_ms: number;
  p95_ms: number;
  call_ms: number;
}

export interface Welcome {
  type: "welcome";
  session: string;
  resume_token: string;
  model: unknown;
  limits: { message_bytes: number; side_px: number; size_px: unknown; window: number };
  schema: Schema;
  values: Values;
  rev: number;
}

export type ServerMessage =
  | Welcome
  | { type: "credit"; n: number; upto: number }
  | { type: "params_ack"; rev: number; effective: Values; warnings: string[] }
  | { type: "queue"; pos: number; eta_s: number }
  | ({ type: "stats" } & ServerStats)
  | { type: "skip"; seq: number }
  | { type: "snapshot"; seq: number; infotext: string; png: string }
  | { type: "error"; code: string; message: string; rev?: number; seq?: number; retry_after?: number };

/** One property of the server's JSON schema, as far as a form needs it. */
export interface Property {
  type: string;
  description?: string;
  default?: unknown;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  multipleOf?: number;
  maxLength?: number;
  enum?: string[];
}

export interface Schema {
  properties: Record<string, Property>;
}

/** The bytes of a picture with its header. */
export function packed(header: Partial<Header> & { kind: number; codec: number; seq: number }, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(HEADER_BYTES + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, VERSION);
  view.setUint8(1, header.kind);
  view.setUint8(2, header.codec);
  view.setUint8(3, header.flags ?? 0);
  view.setUint32(4, header.seq, true);
  view.setUint32(8, header.revision ?? 0, true);
  view.setUint32(12, header.senderMs ?? 0, true);
  view.setUint32(16, header.sourceSeq ?? 0, true);
  view.setUint16(20, tenths(header.serverMs ?? 0), true);
  view.setUint16(22, tenths(header.queueMs ?? 0), true);
  bytes.set(payload, HEADER_BYTES);
  return bytes;
}

/** The picture in these bytes; throws where they are none of this protocol's. */
export function unpacked(data: ArrayBuffer): Picture {
  if (data.byteLength <= HEADER_BYTES) {
    throw new Error(`A picture came with ${data.byteLength} bytes, but its header alone has ${HEADER_BYTES}. Reload the page.`);
  }
  const view = new DataView(data);
  if (view.getUint8(0) !== VERSION) {
    throw new Error(`A picture came in version ${view.getUint8(0)}; this page reads version ${VERSION}. Reload the page.`);
  }
  return {
    kind: view.getUint8(1),
    codec: view.getUint8(2),
    flags: view.getUint8(3),
    seq: view.getUint32(4, true),
    revision: view.getUint32(8, true),
    senderMs: view.getUint32(12, true),
    sourceSeq: view.getUint32(16, true),
    serverMs: view.getUint16(20, true) / 10,
    queueMs: view.getUint16(22, true) / 10,
    payload: new Uint8Array(data, HEADER_BYTES),
  };
}

/** The media type of a codec's pictures. */
export function mediaType(codec: number): string {
  return { [Codec.jpeg]: "image/jpeg", [Codec.webp]: "image/webp", [Codec.png]: "image/png" }[codec] ?? "application/octet-stream";
}

function tenths(ms: number): number {
  return Math.min(65535, Math.max(0, Math.round(ms * 10)));
}
