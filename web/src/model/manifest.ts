/** What `fewstep export --to web` writes beside the page: `model.json`. */

export interface Manifest {
  title: string;
  /** What the page begins with. */
  prompt: string;
  steps: number;
  guidance: number;
  strength: number;
  size_px: number;
  /** Pixels to a cell of the latents, and the latents' channels. */
  cell_px: number;
  channels: number;
  prediction: "epsilon" | "v_prediction" | "sample";
  alphas_cumprod: number[];
  sampler: string;
  /** [hundredths of strength - 1][steps - 1]; empty where so many steps are not to be had. */
  timesteps: number[][][];
  graphs: { text_encoder: string; text_kv: string; unet: string; decoder: string; encoder: string };
  weights: { file: string; bytes: number };
  tokenizer: { file: string; start: number; end: number; pad: number; length: number };
  runtime: Record<"wasm" | "webgpu", { script: string; loader: string; wasm: string; bytes: number }>;
  /** What every picture records, in order; null is filled in by the page. */
  settings: [string, string | null][];
}
