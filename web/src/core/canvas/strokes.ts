/** Strokes: a smooth line through the places of a pen, as wide as it was pressed. */

import type { Box } from "./surface";

export interface Point {
  x: number;
  y: number;
  /** 0 to 1; a mouse presses with 0.5. */
  pressure: number;
}

/** One piece of a stroke: from `from` to `to`, bent towards `bend`, `width` wide. */
export interface Piece {
  from: Point;
  bend: Point;
  to: Point;
  width: number;
}

/** The width that a pressure gives to a brush; a mouse gives the full size. */
export function widthOf(size: number, pressure: number): number {
  return size * Math.min(1, 0.15 + 1.7 * pressure);
}

/** Makes pieces from places: every place bends the line, the middles between them are joined. */
export class Line {
  private last: Point;
  private middle: Point;

  constructor(first: Point, private size: number) {
    this.last = this.middle = first;
  }

  /** The dot that begins the stroke. */
  dot(): Piece {
    return { from: this.last, bend: this.last, to: this.last, width: widthOf(this.size, this.last.pressure) };
  }

  to(next: Point): Piece {
    const middle = between(this.last, next);
    const piece = { from: this.middle, bend: this.last, to: middle, width: widthOf(this.size, middle.pressure) };
    this.last = next;
    this.middle = middle;
    return piece;
  }

  /** The rest, from the last middle to where the pen was lifted. */
  end(): Piece {
    return { from: this.middle, bend: this.last, to: this.last, width: widthOf(this.size, this.last.pressure) };
  }
}

/** What a piece covers, with a pixel for its soft edge. */
export function boxOf({ from, bend, to, width }: Piece): Box {
  const reach = width / 2 + 2;
  return {
    left: Math.min(from.x, bend.x, to.x) - reach,
    top: Math.min(from.y, bend.y, to.y) - reach,
    right: Math.max(from.x, bend.x, to.x) + reach,
    bottom: Math.max(from.y, bend.y, to.y) + reach,
  };
}

/** Draw a piece with the colour or the eraser that the context is set to. */
export function drawPiece(context: OffscreenCanvasRenderingContext2D, piece: Piece): void {
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = piece.width;
  context.beginPath();
  context.moveTo(piece.from.x, piece.from.y);
  context.quadraticCurveTo(piece.bend.x, piece.bend.y, piece.to.x + 0.01, piece.to.y);
  context.stroke();
}

export type ShapeTool = "line" | "rect" | "ellipse";

export interface Shape {
  tool: ShapeTool;
  from: Point;
  to: Point;
  colour: string;
  size: number;
  /** With Shift: equal sides, or a line in steps of 45 degrees. */
  even: boolean;
  filled: boolean;
}

/** Where a shape ends when its sides are to be equal. */
export function evened({ tool, from, to }: Pick<Shape, "tool" | "from" | "to">): Point {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  if (tool === "line") {
    const angle = Math.round(Math.atan2(dy, dx) / (Math.PI / 4)) * (Math.PI / 4);
    const length = Math.hypot(dx, dy);
    return { ...to, x: from.x + length * Math.cos(angle), y: from.y + length * Math.sin(angle) };
  }
  const side = Math.max(Math.abs(dx), Math.abs(dy));
  return { ...to, x: from.x + side * Math.sign(dx || 1), y: from.y + side * Math.sign(dy || 1) };
}

export function shapeBox(shape: Shape): Box {
  const end = shape.even ? evened(shape) : shape.to;
  return boxOf({ from: shape.from, bend: end, to: end, width: shape.size });
}

export function drawShape(context: OffscreenCanvasRenderingContext2D, shape: Shape): void {
  const { from, colour, size } = shape;
  const end = shape.even ? evened(shape) : shape.to;
  const [x, y, width, height] = [Math.min(from.x, end.x), Math.min(from.y, end.y), Math.abs(end.x - from.x), Math.abs(end.y - from.y)];
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = size;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  if (shape.tool === "line") {
    context.moveTo(from.x, from.y);
    context.lineTo(end.x, end.y);
  } else if (shape.tool === "rect") context.rect(x, y, width, height);
  else context.ellipse(x + width / 2, y + height / 2, width / 2, height / 2, 0, 0, 2 * Math.PI);
  if (shape.filled && shape.tool !== "line") context.fill();
  else context.stroke();
}

function between(a: Point, b: Point): Point {
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, pressure: (a.pressure + b.pressure) / 2 };
}
