/** Writes pictures as JPEG or PNG away from the page's own thread. */

interface Job {
  id: number;
  bitmap: ImageBitmap;
  width: number;
  height: number;
  type: string;
  quality: number;
}

let canvas: OffscreenCanvas | null = null;

self.onmessage = async ({ data }: MessageEvent<Job>) => {
  const { id, bitmap, width, height, type, quality } = data;
  if (!canvas || canvas.width !== width || canvas.height !== height) canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) return;
  context.imageSmoothingQuality = "medium";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const bytes = await (await canvas.convertToBlob({ type, quality })).arrayBuffer();
  self.postMessage({ id, bytes }, { transfer: [bytes] });
};
