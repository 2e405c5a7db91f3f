/** The noise schedule and what a network's output means under it; the twin of fewstep/sampling/schedule.py. */

import type { Manifest } from "./manifest";

/** Where the last step of a sampler ends: the clean picture. */
export const CLEAN = -1;
const SMALLEST_ALPHA = 2 ** -12;

/** a x + b y, number by number. */
export function mixed(a: number, x: Float32Array, b: number, y: Float32Array): Float32Array {
  return x.map((value, i) => a * value + b * (y[i] as number));
}

export class Schedule {
  constructor(private abar: number[], private prediction: Manifest["prediction"]) {}

  /** [alpha, sigma] at a whole timestep; CLEAN gives exactly [1, 0]. */
  at(t: number): [number, number] {
    if (t === CLEAN) return [1, 0];
    const abar = this.abar[t];
    if (abar === undefined) throw new RangeError(`Timestep ${t} is outside -1 to ${this.abar.length - 1}.`);
    return [Math.fround(Math.sqrt(abar)), Math.fround(Math.sqrt(1 - abar))];
  }

  /** z_t = alpha z0 + sigma noise (Ho et al. 2020, arXiv:2006.11239, eq. 4). */
  noised(z0: Float32Array, noise: Float32Array, t: number): Float32Array {
    const [alpha, sigma] = this.at(t);
    return mixed(alpha, z0, sigma, noise);
  }

  /** The clean latents that the network's output claims (v: Salimans & Ho 2022, arXiv:2202.00512, appendix D). */
  clean(z: Float32Array, output: Float32Array, t: number): Float32Array {
    if (this.prediction === "sample") return output;
    const [alpha, sigma] = this.at(t);
    if (this.prediction === "v_prediction") return mixed(alpha, z, -sigma, output);
    const least = Math.max(alpha, SMALLEST_ALPHA);
    return mixed(1 / least, z, -sigma / least, output);
  }
}
