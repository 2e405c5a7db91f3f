/** One sampling step of LCM, TCD and PCM (or DDIM); the twin of fewstep/sampling/consistency.py. */

import { CLEAN, mixed, type Schedule } from "./schedule";

/** z at `next` from z and the predicted z0 at `t`; `noise` is null in the last step. */
type Advance = (schedule: Schedule, z: Float32Array, z0: Float32Array, t: number, next: number, noise: Float32Array | null) => Float32Array;

export interface Sampler {
  advance: Advance;
  /** Where the last step ends. */
  last: number;
  noisy: boolean;
}

const TIMESTEP_SCALING = 10;
const SIGMA_DATA = 0.5;
const TCD_GAMMA = 0.3;

/** Multistep consistency sampling (Luo et al. 2023, arXiv:2310.04378, section 4.1): f(z, t), noised afresh. */
const lcm: Advance = (schedule, z, z0, t, next, noise) => {
  const tau = Math.max(t, 0) * TIMESTEP_SCALING;
  const total = tau * tau + SIGMA_DATA ** 2;
  const [alpha, sigma] = schedule.at(next);
  const f = mixed(SIGMA_DATA ** 2 / total, z, tau / Math.sqrt(total), z0);
  return noise ? mixed(alpha, f, sigma, noise) : f.map((value) => alpha * value);
};

/** Song et al. 2020, arXiv:2010.02502, eq. 12 with eta 0. */
const ddim: Advance = (schedule, z, z0, t, next) => {
  const [alpha, sigma] = schedule.at(t);
  const [alphaNext, sigmaNext] = schedule.at(next);
  return mixed(alphaNext, z0, sigmaNext, mixed(1 / sigma, z, -alpha / sigma, z0));
};

/** Strategic stochastic sampling (Zheng et al. 2024, arXiv:2402.19159, algorithm 4), with its usual gamma. */
const tcd: Advance = (schedule, z, z0, t, next, noise) => {
  const s = Math.min(next, Math.floor((1 - TCD_GAMMA) * next));
  const ahead = ddim(schedule, z, z0, t, s, null);
  if (!noise) return ahead;
  const [[alpha, sigma], [alphaS, sigmaS]] = [schedule.at(next), schedule.at(s)];
  const fade = alpha / alphaS;
  return mixed(fade, ahead, Math.sqrt(Math.max(0, sigma ** 2 - (fade * sigmaS) ** 2)), noise);
};

export const SAMPLERS: Record<string, Sampler> = {
  lcm: { advance: lcm, last: CLEAN, noisy: true },
  tcd: { advance: tcd, last: 0, noisy: true },
  pcm: { advance: ddim, last: 0, noisy: false },
  ddim: { advance: ddim, last: 0, noisy: false },
};
