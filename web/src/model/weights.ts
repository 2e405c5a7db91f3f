/** Weights of half precision as the float32 that every browser computes with. */

/** Each number widened exactly; the values of all 65,536 halves are looked up. */
export function widened(half: Uint16Array): Float32Array {
  const table = Float32Array.from({ length: 0x10000 }, (_, bits) => valueOf(bits));
  const wide = new Float32Array(half.length);
  for (let i = 0; i < half.length; i++) wide[i] = table[half[i] as number] as number;
  return wide;
}

/** IEEE 754 binary16: a sign, 5 bits of exponent, 10 of fraction. */
function valueOf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
