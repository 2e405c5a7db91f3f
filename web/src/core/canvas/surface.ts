/** Pixels that can be read and written in rectangles: all that undo needs to know of a layer. */

export interface Surface {
  readonly width: number;
  readonly height: number;
  read(x: number, y: number, width: number, height: number): Uint8ClampedArray;
  write(x: number, y: number, width: number, height: number, pixels: Uint8ClampedArray): void;
}

/** A rectangle from its upper left corner (inside) to its lower right corner (outside). */
export interface Box {
  left: number;
  top: number;
  right: number;
  bottom: number;
}

/** A layer's pixels on a canvas nobody sees. */
export class Sheet implements Surface {
  readonly canvas: OffscreenCanvas;
  readonly context: OffscreenCanvasRenderingContext2D;

  constructor(readonly width: number, readonly height: number) {
    this.canvas = new OffscreenCanvas(width, height);
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    if (!context) throw new Error("This browser gives no canvas to draw on. Use a newer one.");
    this.context = context;
  }

  read(x: number, y: number, width: number, height: number): Uint8ClampedArray {
    return this.context.getImageData(x, y, width, height).data;
  }

  write(x: number, y: number, width: number, height: number, pixels: Uint8ClampedArray): void {
    this.context.putImageData(new ImageData(new Uint8ClampedArray(pixels), width, height), x, y);
  }

  clear(): void {
    this.context.clearRect(0, 0, this.width, this.height);
  }

  /** Whether nothing is on it. */
  get blank(): boolean {
    const words = new Uint32Array(this.read(0, 0, this.width, this.height).buffer);
    return words.every((word) => word === 0);
  }
}
