// The brush that paints the mask over the init image, by mouse, pen and finger, or with the keyboard.
// Strokes are kept as lines in the image's own pixels, so the mask is as fine as the photograph, however small the view is.

const VIEW = 2048; // pixels of the view's longer side
const MOST_PIXELS = 16_000_000; // of the mask, since phones refuse larger canvases; the server scales it to the init image
const ZOOM = 1.5; // by one press of a button

export class Mask {
  constructor(canvas, brush, cursor, changed) {
    this.canvas = canvas;
    this.sheet = canvas.parentElement; // the image and the canvas: as large as the zoom makes it
    this.easel = this.sheet.parentElement; // the part of it that is seen
    this.brush = brush;
    this.cursor = cursor;
    this.changed = changed;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.erasing = this.moving = false;
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (this.stroke = this.held = null));
    canvas.addEventListener("pointerleave", () => (this.cursor.hidden = true));
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => (this.cursor.hidden = true));
    this.reset(1, 1);
  }

  /** A blank mask for an image of this size. */
  reset(width, height) {
    Object.assign(this, { width, height, strokes: [], stroke: null, held: null, zoom: 1 });
    this.scale = Math.min(1, VIEW / Math.max(width, height)); // of the view
    this.canvas.width = Math.round(width * this.scale);
    this.canvas.height = Math.round(height * this.scale);
    this.at = { x: width / 2, y: height / 2 };
    this.easel.style.aspectRatio = width / height;
    this.sheet.style.width = "100%";
  }

  clear() {
    const { at, width, height } = this;
    this.strokes.push({ erasing: true, diameter: 4 * Math.max(width, height), points: [at] });
    this.#redraw();
  }

  undo() {
    this.strokes.pop();
    this.#redraw();
  }

  get empty() {
    const pixels = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height).data;
    for (let i = 3; i < pixels.length; i += 4) if (pixels[i]) return false;
    return true;
  }

  /** The mask as the server takes it: a PNG, white = replace, black = keep. */
  blob() {
    const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (this.width * this.height)));
    const [width, height] = [Math.floor(this.width * scale), Math.floor(this.height * scale)];
    const copy = new OffscreenCanvas(width, height);
    const context = copy.getContext("2d");
    draw(context, this.strokes, scale);
    context.resetTransform();
    context.globalCompositeOperation = "source-in";
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "black";
    context.fillRect(0, 0, width, height);
    return copy.convertToBlob({ type: "image/png" });
  }

  /** Shows the image larger by this factor; the point at `event`, or else the middle, stays where it is. */
  magnify(factor = ZOOM, event = undefined) {
    const box = this.easel.getBoundingClientRect();
    const x = event ? event.clientX - box.left : box.width / 2;
    const y = event ? event.clientY - box.top : box.height / 2;
    const most = Math.max(4, this.width / box.width); // a pixel of the photograph on a pixel of the page
    const zoom = within(this.zoom * factor, 1, most);
    const left = ((this.easel.scrollLeft + x) * zoom) / this.zoom - x;
    const top = ((this.easel.scrollTop + y) * zoom) / this.zoom - y;
    this.zoom = zoom;
    this.sheet.style.width = `${100 * zoom}%`;
    this.easel.scrollTo(left, top);
  }

  shrink() {
    this.magnify(1 / ZOOM);
  }

  /** Shows the whole image. */
  fit() {
    this.magnify(0);
  }

  /** In pixels of the image. On the page, the brush keeps its size whatever the zoom is. */
  get #diameter() {
    return (Math.max(this.width, this.height) * Number(this.brush.value)) / 200 / this.zoom;
  }

  #redraw() {
    this.context.resetTransform();
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    draw(this.context, this.strokes, this.scale);
    this.changed();
  }

  #position(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.width,
      y: ((event.clientY - box.top) / box.height) * this.height,
    };
  }

  #press(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    if (this.moving) this.held = event;
    else this.stroke = this.#begin(this.#position(event));
  }

  #move(event) {
    if (this.held) {
      this.easel.scrollBy(this.held.clientX - event.clientX, this.held.clientY - event.clientY);
      this.held = event;
      return;
    }
    this.#show(this.#position(event));
    if (!this.stroke) return;
    this.stroke.points.push(this.at);
    draw(this.context, [{ ...this.stroke, points: this.stroke.points.slice(-2) }], this.scale);
  }

  #begin(at) {
    const stroke = { erasing: this.erasing, diameter: this.#diameter, points: [at] };
    this.strokes.push(stroke);
    draw(this.context, [stroke], this.scale);
    this.changed();
    return stroke;
  }

  #show(at) {
    this.at = at;
    this.cursor.hidden = this.moving;
    this.cursor.style.left = `${(100 * at.x) / this.width}%`;
    this.cursor.style.top = `${(100 * at.y) / this.height}%`;
    this.cursor.style.width = `${(100 * this.#diameter) / this.width}%`;
  }

  #wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // scrolls
    event.preventDefault();
    this.magnify(ZOOM ** (-event.deltaY / 100), event);
    this.#show(this.#position(event));
  }

  #key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      const length = Math.max(4, this.#diameter / 3);
      const [x, y] = [this.at.x + step[0] * length, this.at.y + step[1] * length];
      this.#show({ x: within(x, 0, this.width), y: within(y, 0, this.height) });
      this.cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else if (event.key === " ") {
      this.#show(this.at);
      this.#begin(this.at);
    } else if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      this.undo();
    } else if (event.key === "+" || event.key === "-") {
      this.magnify(event.key === "+" ? ZOOM : 1 / ZOOM);
      this.#show(this.at);
      this.cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else {
      return;
    }
    event.preventDefault();
  }
}

/** Draws strokes, whose points are pixels of the image, on a canvas that is `scale` times as large. */
function draw(context, strokes, scale) {
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.strokeStyle = "#ff4a1c";
  context.lineCap = context.lineJoin = "round";
  for (const { erasing, diameter, points } of strokes) {
    context.globalCompositeOperation = erasing ? "destination-out" : "source-over";
    context.lineWidth = diameter;
    context.beginPath();
    for (const { x, y } of points) context.lineTo(x, y);
    context.lineTo(points.at(-1).x + 0.01, points.at(-1).y); // a single point is a dot
    context.stroke();
  }
}

function within(value, least, most) {
  return Math.min(Math.max(value, least), most);
}
