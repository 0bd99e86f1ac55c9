// The brush: what is painted over the picture is drawn anew. By mouse, pen and finger, or with the keyboard.

const LONGEST = 2048; // pixels of the mask; the server scales it to the picture
const UNDOS = 20;

export class Mask {
  constructor(canvas, brush, cursor, changed) {
    this.canvas = canvas;
    this.brush = brush;
    this.cursor = cursor;
    this.changed = changed;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.erasing = false;
    this.undone = [];
    this.last = null;
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", () => (this.last = null));
    canvas.addEventListener("pointercancel", () => (this.last = null));
    canvas.addEventListener("pointerleave", () => (this.cursor.hidden = true));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => (this.cursor.hidden = true));
  }

  /** A blank mask for a picture of this size. */
  reset(width, height) {
    const scale = Math.min(1, LONGEST / Math.max(width, height));
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.at = { x: this.canvas.width / 2, y: this.canvas.height / 2 };
    this.undone = [];
  }

  clear() {
    this.#remember();
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.changed();
  }

  undo() {
    const before = this.undone.pop();
    if (before) this.context.putImageData(before, 0, 0);
    this.changed();
  }

  get empty() {
    const pixels = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height).data;
    for (let i = 3; i < pixels.length; i += 4) if (pixels[i]) return false;
    return true;
  }

  /** The mask as the server wants it: a PNG, white = replace, black = keep. */
  blob() {
    const { width, height } = this.canvas;
    const copy = new OffscreenCanvas(width, height);
    const context = copy.getContext("2d");
    context.drawImage(this.canvas, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "black";
    context.fillRect(0, 0, width, height);
    return copy.convertToBlob({ type: "image/png" });
  }

  get #diameter() {
    return (Math.max(this.canvas.width, this.canvas.height) * Number(this.brush.value)) / 200;
  }

  #remember() {
    this.undone.push(this.context.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.undone.length > UNDOS) this.undone.shift();
  }

  #position(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  #press(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.#remember();
    this.#paint((this.last = this.#position(event)));
  }

  #move(event) {
    this.#show(this.#position(event));
    if (this.last) this.#paint(this.#position(event));
  }

  #paint(to) {
    const from = this.last ?? to;
    this.context.globalCompositeOperation = this.erasing ? "destination-out" : "source-over";
    this.context.strokeStyle = "#ff4a1c";
    this.context.lineWidth = this.#diameter;
    this.context.lineCap = "round";
    this.context.beginPath();
    this.context.moveTo(from.x, from.y);
    this.context.lineTo(to.x + 0.01, to.y);
    this.context.stroke();
    this.last &&= to;
    this.changed();
  }

  #show(at) {
    this.at = at;
    const box = this.canvas.getBoundingClientRect();
    const scale = box.width / this.canvas.width;
    this.cursor.hidden = false;
    this.cursor.style.left = `${at.x * scale}px`;
    this.cursor.style.top = `${at.y * scale}px`;
    this.cursor.style.width = this.cursor.style.height = `${this.#diameter * scale}px`;
  }

  #key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      const length = Math.max(4, this.#diameter / 3);
      const within = (value, most) => Math.min(Math.max(value, 0), most);
      this.#show({
        x: within(this.at.x + step[0] * length, this.canvas.width),
        y: within(this.at.y + step[1] * length, this.canvas.height),
      });
    } else if (event.key === " ") {
      this.#remember();
      this.#show(this.at);
      this.#paint(this.at);
    } else if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      this.undo();
    } else {
      return;
    }
    event.preventDefault();
  }
}
