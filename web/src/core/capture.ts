/** Where frames come from: a camera, a screen, a video file, a pattern; and how they become bytes. */

import { type Size, covered } from "./canvas/view";
import { Codec } from "./protocol";

/** A part of a picture, each number from 0 to 1 of its sides. */
export interface Part {
  x: number;
  y: number;
  width: number;
  height: number;
}

export const WHOLE: Part = { x: 0, y: 0, width: 1, height: 1 };

/** Something that moves. */
export interface Source {
  readonly picture: HTMLVideoElement | HTMLCanvasElement;
  readonly size: Size;
  /** Counts up with every new picture. */
  readonly ticks: number;
  stop(): void;
}

const FACING = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };

export async function camera(device: string): Promise<Source> {
  const from = device ? { deviceId: { exact: device } } : { facingMode: "user" };
  return watched(await navigator.mediaDevices.getUserMedia({ video: { ...FACING, ...from }, audio: false }));
}

export async function screen(): Promise<Source> {
  return watched(await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { ideal: 30 } }, audio: false }));
}

export async function cameras(): Promise<{ id: string; label: string }[]> {
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices.filter(({ kind }) => kind === "videoinput").map(({ deviceId, label }, index) => ({ id: deviceId, label: label || `Camera ${index + 1}` }));
}

/** A film from a file, again and again. */
export async function film(file: Blob): Promise<Source> {
  const address = URL.createObjectURL(file);
  const video = newVideo();
  video.src = address;
  video.loop = true;
  return playing(video, () => URL.revokeObjectURL(address));
}

/** Shapes that move, for those without a camera. */
export function pattern(): Source {
  const picture = document.createElement("canvas");
  picture.width = picture.height = 512;
  const context = picture.getContext("2d");
  let ticks = 0;
  const draw = () => {
    ticks += 1;
    if (context) drawPattern(context, performance.now() / 1000);
  };
  const timer = setInterval(draw, 33);
  draw();
  return { picture, size: picture, get ticks() { return ticks; }, stop: () => clearInterval(timer) };
}

function drawPattern(context: CanvasRenderingContext2D, seconds: number): void {
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, 512, 512);
  const turn = seconds * 0.8;
  context.fillStyle = "#d62828";
  circle(context, 256 + 90 * Math.cos(turn), 256 + 60 * Math.sin(turn), 110 + 14 * Math.sin(2 * turn));
  context.fillStyle = "#2a7d3f";
  circle(context, 256 + 90 * Math.cos(turn) + 30, 130 + 60 * Math.sin(turn), 28);
  context.fillStyle = "#f4a261";
  circle(context, 256 - 170 * Math.cos(0.7 * turn), 400 + 30 * Math.sin(turn), 44);
}

function circle(context: CanvasRenderingContext2D, x: number, y: number, radius: number): void {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function newVideo(): HTMLVideoElement {
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  return video;
}

function watched(stream: MediaStream): Promise<Source> {
  const video = newVideo();
  video.srcObject = stream;
  return playing(video, () => stream.getTracks().forEach((track) => track.stop()));
}

async function playing(video: HTMLVideoElement, release: () => void): Promise<Source> {
  let [ticks, over] = [0, false];
  const next = () => {
    ticks += 1;
    if (!over) video.requestVideoFrameCallback(next);
  };
  video.requestVideoFrameCallback(next);
  try {
    await video.play();
  } catch (error) {
    release();
    throw error;
  }
  const stop = () => {
    over = true;
    video.pause();
    release();
  };
  return { picture: video, get size() { return { width: video.videoWidth, height: video.videoHeight }; }, get ticks() { return ticks; }, stop };
}

/** The pixels to take: the chosen part, then the largest piece of it with the ratio of the target. */
export function cut(size: Size, part: Part, target: Size): { x: number; y: number; width: number; height: number } {
  const inside = { width: Math.max(1, size.width * part.width), height: Math.max(1, size.height * part.height) };
  const piece = covered(inside, target);
  return { ...piece, x: size.width * part.x + piece.x, y: size.height * part.y + piece.y };
}

/** Pictures into bytes, in a worker, one at a time. */
export class Encoder {
  private worker = new Worker(new URL("./encode.worker.ts", import.meta.url), { type: "module" });
  private waiting = new Map<number, (bytes: Uint8Array<ArrayBuffer>) => void>();
  private count = 0;

  constructor() {
    this.worker.onmessage = ({ data }: MessageEvent<{ id: number; bytes: ArrayBuffer }>) => {
      this.waiting.get(data.id)?.(new Uint8Array(data.bytes));
      this.waiting.delete(data.id);
    };
  }

  /** Whether it has nothing to do. */
  get idle(): boolean {
    return this.waiting.size === 0;
  }

  encode(bitmap: ImageBitmap, size: Size, codec: number): Promise<Uint8Array<ArrayBuffer>> {
    const id = ++this.count;
    const type = codec === Codec.png ? "image/png" : "image/jpeg";
    this.worker.postMessage({ id, bitmap, ...size, type, quality: 0.9 }, [bitmap]);
    return new Promise((resolve) => this.waiting.set(id, resolve));
  }
}
