/**
 * Unit noise of a seed, number for number that of torch on a CPU: a picture is the same here and in Python.
 *
 * Source: PyTorch, aten/src/ATen/native/cpu/DistributionTemplates.h (`normal_fill`) and core/MT19937RNGEngine.h; the
 * twin of fewstep/noise.py. Departure: draws of fewer than 16 numbers, which no latent has, are not there.
 */

const STATE = 624;
const AHEAD = 397;
const BLOCK = 16;
const HALF = 8;

/** Matsumoto & Nishimura 2002, seeded by `init_genrand`; the seed's lower 32 bits count. */
class Mersenne {
  private state = new Uint32Array(STATE);
  private at = STATE;

  constructor(seed: number) {
    this.state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < STATE; i++) {
      const before = this.word(i - 1);
      this.state[i] = Math.imul(1812433253, before ^ (before >>> 30)) + i;
    }
  }

  next(): number {
    if (this.at === STATE) this.twist();
    let y = this.word(this.at++);
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  private word(index: number): number {
    return this.state[index] as number;
  }

  private twist(): void {
    for (let i = 0; i < STATE; i++) {
      const y = (this.word(i) & 0x80000000) | (this.word((i + 1) % STATE) & 0x7fffffff);
      this.state[i] = this.word((i + AHEAD) % STATE) ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.at = 0;
  }
}

/** A stream of unit normal numbers; every draw continues where the last one ended. */
export class Noise {
  private engine: Mersenne;

  constructor(seed: number) {
    this.engine = new Mersenne(seed);
  }

  /** The next `count` numbers, at least 16; a last, short block is drawn anew. */
  normal(count: number): Float32Array {
    if (count < BLOCK) throw new RangeError(`${count} numbers were asked for; 16 are the least.`);
    const values = this.uniform(count);
    for (let start = 0; start + BLOCK <= count; start += BLOCK) boxMuller(values.subarray(start, start + BLOCK));
    if (count % BLOCK) {
      const last = this.uniform(BLOCK);
      boxMuller(last);
      values.set(last, count - BLOCK);
    }
    return values;
  }

  /** Numbers in [0, 1) of 24 bits, which float32 holds exactly. */
  private uniform(count: number): Float32Array {
    return Float32Array.from({ length: count }, () => (this.engine.next() & 0xffffff) / 0x1000000);
  }
}

/** Box & Muller 1958: the first eight of a block give the radii, the other eight the angles. In place, in float32. */
function boxMuller(block: Float32Array): void {
  const round = Math.fround;
  const turn = round(2 * Math.PI);
  for (let i = 0; i < HALF; i++) {
    const radius = round(Math.sqrt(round(-2 * round(Math.log(round(1 - (block[i] as number)))))));
    const angle = round(turn * (block[i + HALF] as number));
    block[i] = radius * round(Math.cos(angle));
    block[i + HALF] = radius * round(Math.sin(angle));
  }
}
