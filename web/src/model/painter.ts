/** From words, or a picture, to a picture: text encoder, few-step sampling, autoencoder. No page and no file in here. */

import type { Manifest } from "./manifest";
import { Noise } from "./noise";
import { type Chunk, chunks, emphasised } from "./prompt";
import { SAMPLERS, type Sampler } from "./samplers";
import { Schedule } from "./schedule";

export interface Order {
  prompt: string;
  negative: string;
  steps: number;
  guidance: number;
  strength: number;
  seed: number;
  /** Red, green, blue, opacity of a picture to begin from; null for noise alone. */
  image: Uint8ClampedArray | null;
}

export interface Painted {
  pixels: Uint8ClampedArray;
  /** As many as the strength has. */
  steps: number;
}

export type Graph = keyof Manifest["graphs"];

export interface Tensor {
  data: Float32Array | BigInt64Array;
  dims: readonly number[];
}

/** A network's first output. */
export type Run = (graph: Graph, inputs: Record<string, Tensor>) => Promise<Float32Array>;

type Text = { data: Float32Array; length: number };

const REMEMBERED = 8;

export class Painter {
  private schedule: Schedule;
  private sampler: Sampler;
  private side: number;
  private texts = new Map<string, Text>();

  constructor(private model: Manifest, private tokenize: (text: string) => number[], private run: Run) {
    this.schedule = new Schedule(model.alphas_cumprod, model.prediction);
    this.sampler = SAMPLERS[model.sampler] as Sampler;
    this.side = model.size_px / model.cell_px;
  }

  async paint(order: Order): Promise<Painted> {
    const { model } = this;
    const timesteps = order.image ? this.timesteps(order) : this.timesteps({ ...order, strength: 1 });
    const text = await this.text(order.prompt);
    const negative = order.guidance === 1 ? null : await this.text(order.negative);
    const noise = new Noise(order.seed);
    const draw = () => noise.normal(model.channels * this.side ** 2);
    let z = draw();
    if (order.image && order.strength < 1) z = this.schedule.noised(await this.encode(order.image), z, timesteps[0] as number);
    for (const [index, t] of timesteps.entries()) {
      const next = timesteps[index + 1] ?? this.sampler.last;
      const z0 = await this.denoise(z, t, text, negative, order.guidance);
      z = this.sampler.advance(this.schedule, z, z0, t, next, this.sampler.noisy && index + 1 < timesteps.length ? draw() : null);
    }
    return { pixels: await this.decode(z), steps: timesteps.length };
  }

  /** Those asked for; fewer where the strength has fewer. */
  private timesteps({ steps, strength }: Pick<Order, "steps" | "strength">): number[] {
    const hundredths = Math.min(100, Math.max(1, Math.round(strength * 100)));
    const rows = this.model.timesteps[hundredths - 1] ?? [];
    return rows.slice(0, steps).filter((row) => row.length).at(-1) ?? [];
  }

  /** Every UNet block's keys and values of a prompt; the last few prompts are remembered. */
  private async text(prompt: string): Promise<Text> {
    const known = this.texts.get(prompt);
    if (known) return known;
    const { length } = this.model.tokenizer;
    const found = chunks(prompt, this.tokenize, length - 2);
    const states: Float32Array[] = [];
    for (const chunk of found) {
      const ids = { data: BigInt64Array.from(this.filled(chunk), BigInt), dims: [1, length] };
      states.push(emphasised(await this.run("text_encoder", { ids_BL: ids }), chunk.weights, length));
    }
    const all = joined(states);
    const positions = length * found.length;
    const text_BLD = { data: all, dims: [1, positions, all.length / positions] };
    const text = { data: await this.run("text_kv", { text_BLD }), length: positions };
    if (this.texts.size === REMEMBERED) this.texts.delete(this.texts.keys().next().value as string);
    this.texts.set(prompt, text);
    return text;
  }

  private filled({ ids }: Chunk): number[] {
    const { start, end, pad, length } = this.model.tokenizer;
    return [start, ...ids, end, ...new Array<number>(length - 2 - ids.length).fill(pad)];
  }

  /** uncond + s (cond - uncond) (Ho & Salimans 2022, arXiv:2207.12598, eq. 6) by two evaluations; one where s is 1. */
  private async denoise(z: Float32Array, t: number, text: Text, negative: Text | null, guidance: number): Promise<Float32Array> {
    const cond = await this.unet(z, t, text);
    if (!negative) return this.schedule.clean(z, cond, t);
    const uncond = await this.unet(z, t, negative);
    const output = cond.map((value, i) => (uncond[i] as number) + guidance * (value - (uncond[i] as number)));
    return this.schedule.clean(z, output, t);
  }

  private unet(z: Float32Array, t: number, text: Text): Promise<Float32Array> {
    return this.run("unet", {
      z_BCHW: { data: z, dims: [1, this.model.channels, this.side, this.side] },
      timestep_B: { data: Float32Array.of(t), dims: [1] },
      text_kv_BLK: { data: text.data, dims: [1, text.length, text.data.length / text.length] },
    });
  }

  private encode(pixels: Uint8ClampedArray): Promise<Float32Array> {
    const size = this.model.size_px;
    const data = new Float32Array(3 * size * size);
    for (let colour = 0; colour < 3; colour++) {
      for (let i = 0; i < size * size; i++) data[colour * size * size + i] = (pixels[4 * i + colour] as number) / 127.5 - 1;
    }
    return this.run("encoder", { image_BCHW: { data, dims: [1, 3, size, size] } });
  }

  private async decode(z: Float32Array): Promise<Uint8ClampedArray> {
    const size = this.model.size_px;
    const image = await this.run("decoder", { z_BCHW: { data: z, dims: [1, this.model.channels, this.side, this.side] } });
    const pixels = new Uint8ClampedArray(4 * size * size).fill(255);
    for (let colour = 0; colour < 3; colour++) {
      for (let i = 0; i < size * size; i++) pixels[4 * i + colour] = ((image[colour * size * size + i] as number) + 1) * 127.5;
    }
    return pixels;
  }
}

function joined(parts: Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
