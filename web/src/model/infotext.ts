/** The settings that a picture carries, as fewstep/infotext.py writes them, in a PNG's text chunk "parameters". */

const SIGNATURE_AND_HEADER = 8 + 25;

/** The notation of AUTOMATIC1111: the prompt, the negative prompt, a line of settings. */
export function infotext(prompt: string, negative: string, settings: [string, string][]): string {
  const line = settings.map(([key, value]) => `${key}: ${quoted(value)}`).join(", ");
  return [prompt, ...(negative ? [`Negative prompt: ${negative}`] : []), line].join("\n");
}

function quoted(value: string): string {
  const plain = value && value === value.trim() && !value.startsWith('"') && !/[,:\n]/.test(value);
  return plain ? value : JSON.stringify(value);
}

/** The PNG with one more chunk, iTXt, behind its header (PNG 3rd edition, 11.3.3.4: keyword, flags, UTF-8). */
export function withText(png: Uint8Array, text: string): Uint8Array {
  const body = new TextEncoder().encode(`iTXtparameters\0\0\0\0\0${text}`);
  const chunk = new Uint8Array(body.length + 8);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, body.length - 4);
  chunk.set(body, 4);
  view.setUint32(body.length + 4, crc32(body));
  const whole = new Uint8Array(png.length + chunk.length);
  whole.set(png.subarray(0, SIGNATURE_AND_HEADER));
  whole.set(chunk, SIGNATURE_AND_HEADER);
  whole.set(png.subarray(SIGNATURE_AND_HEADER), SIGNATURE_AND_HEADER + chunk.length);
  return whole;
}

/** PNG 3rd edition, annex D. */
export function crc32(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
