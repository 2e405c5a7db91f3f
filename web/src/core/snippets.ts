/** The same picture from a shell and from Python, and the order for finishing it. */

import type { Values } from "./protocol";

export interface Order {
  path: string;
  body: Values;
}

/** The prompt with its LoRAs, as A1111's interface reads them. */
export function withLoras(values: Values): string {
  const loras = (values.loras as { name: string; weight: number }[] | undefined) ?? [];
  const tags = loras.filter(({ weight }) => weight).map(({ name, weight }) => ` <lora:${name}:${weight}>`);
  return String(values.prompt ?? "") + tags.join("");
}

/** One picture through /sdapi/v1; `image` and `mask` as base64. */
export function order(values: Values, image: string | null, mask: string | null): Order {
  const asked: Values = {
    prompt: withLoras(values),
    negative_prompt: values.negative_prompt || null,
    steps: values.steps,
    cfg_scale: values.guidance,
    seed: values.seed,
    width: values.width,
    height: values.height,
    sampler_name: values.sampler || null,
    scheduler: values.sampler ? values.schedule : null,
    override_settings: { fewstep_policy: "respect", ...(Number(values.clip_skip) > 1 ? { CLIP_stop_at_last_layers: values.clip_skip } : {}) },
  };
  const pictures: Values = image ? { init_images: [image], denoising_strength: values.strength, mask } : {};
  const given = Object.entries({ ...asked, ...pictures }).filter(([, value]) => value !== null && value !== undefined);
  return { path: image ? "/sdapi/v1/img2img" : "/sdapi/v1/txt2img", body: Object.fromEntries(given) };
}

/** The same order with more steps, and twice the size where nothing is masked. */
export function finishing({ path, body }: Order): Order {
  const steps = Math.min(50, Math.max(8, 2 * Number(body.steps ?? 4)));
  const second = body.mask ? {} : { enable_hr: true, hr_scale: 2 };
  return { path, body: { ...body, steps, ...second } };
}

function shortened(body: Values): Values {
  const short: Values = { ...body };
  if (short.init_images) short.init_images = ["BASE64 OF input.png"];
  if (short.mask) short.mask = "BASE64 OF mask.png";
  return short;
}

/** For a shell: asks, and writes picture.png. */
export function curl({ path, body }: Order, origin: string): string {
  const json = JSON.stringify(shortened(body)).replaceAll("'", "'\\''");
  return `curl -s ${origin}${path} -H 'content-type: application/json' \\\n  -d '${json}' \\\n  | python3 -c 'import base64,json,sys; sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["images"][0]))' > picture.png`;
}

/** For Python, with the package itself. */
export function python(values: Values, image: boolean, mask: boolean): string {
  const names = ["negative_prompt", "steps", "guidance", "seed", "width", "height", "sampler", "schedule"];
  const given = names.filter((name) => values[name] !== null && values[name] !== undefined && values[name] !== "");
  const lines = [JSON.stringify(withLoras(values)), ...given.map((name) => `${name}=${JSON.stringify(values[name])}`)];
  if (Number(values.clip_skip) > 1) lines.push(`clip_skip=${values.clip_skip}`);
  if (image) lines.push('image="input.png"', `strength=${values.strength ?? 0.6}`);
  if (mask) lines.push('mask="mask.png"');
  return `import fewstep\n\npipe = fewstep.load()\npicture = pipe(\n${lines.map((line) => `    ${line},\n`).join("")})\npicture.save("picture.png")\n`;
}
