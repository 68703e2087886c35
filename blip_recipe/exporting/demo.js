// The script of the page: load the model that lies beside it, and caption the pictures that are chosen.
const $ = (id) => document.getElementById(id);
const settings = JSON.parse($("settings").textContent);
const files = $("files"), drop = $("drop"), dtype = $("dtype"), results = $("results");
const NEEDS_SERVER = "A browser loads no model from a disk: run `python -m http.server` in the folder of this page, "
  + "and open http://localhost:8000.";
let library, tokenizer, model;
let work = Promise.resolve();  // one thing at a time

function tell(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

async function load() {
  enable(false);
  try {
    library ??= await loadLibrary();
    const options = { dtype: dtype?.value ?? settings.dtype, progress_callback: showProgress, local_files_only: true };
    tokenizer ??= await library.AutoTokenizer.from_pretrained("./", options);
    await model?.dispose();
    model = await library.VisionEncoderDecoderModel.from_pretrained("./", options);
    tell("Ready.");
    enable(true);
  } catch (error) {
    tell(location.protocol === "file:" ? NEEDS_SERVER : `The model cannot be loaded: ${error.message}`, true);
  }
}

async function loadLibrary() {
  const found = await import(new URL(settings.library, location.href).href);
  found.env.allowLocalModels = true;
  found.env.allowRemoteModels = false;
  found.env.useBrowserCache = found.env.useWasmCache = false;  // its keys do not tell two folders apart
  const { wasm } = found.env.backends.onnx;
  if (settings.wasm) {
    const place = (name) => new URL(settings.wasm + name, location.href).href;
    wasm.wasmPaths = { mjs: place(settings.wasm_files[0]), wasm: place(settings.wasm_files[1]) };
  }
  if (!crossOriginIsolated) wasm.numThreads = 1;
  return found;
}

function showProgress({ status, file, progress }) {
  if (status === "progress" && file.endsWith(".onnx")) tell(`Loading ${file}: ${Math.round(progress)}%`);
}

function enable(ready) {
  files.disabled = !ready;
  if (dtype) dtype.disabled = !ready;
}

// The pixels of a picture file, upright, without conversion of colours.
async function readPixels(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return makePixels(context.getImageData(0, 0, canvas.width, canvas.height), settings.image);
}

async function caption(file) {
  const { height, width } = settings.image;
  const inputs = new library.Tensor("float32", await readPixels(file), [1, 3, height, width]);
  const ids = await model.generate({ inputs, decoder_input_ids: settings.prompt_ids });
  const words = ids.tolist()[0].slice(settings.prompt_ids.length);
  return words.length ? tokenizer.decode(words, { skip_special_tokens: true }).trim() : "";
}

function show(file) {
  const figure = document.createElement("figure"), image = document.createElement("img");
  const text = document.createElement("figcaption"), line = document.createElement("div");
  const note = document.createElement("div");
  image.src = URL.createObjectURL(file);
  image.alt = "";
  image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
  line.className = "caption";
  line.dir = "auto";
  line.textContent = "…";
  note.className = "note";
  note.textContent = file.name;
  text.append(line, note);
  figure.append(image, text);
  results.prepend(figure);
  return { figure, image, line, note };
}

async function add(chosen) {
  const shown = [...chosen].map((file) => ({ file, ...show(file) }));
  work = work.then(async () => {
    for (const { file, figure, image, line, note } of shown) {
      const start = performance.now();
      try {
        line.textContent = await caption(file);
        image.alt = line.textContent;
        note.textContent = `${file.name}, ${((performance.now() - start) / 1000).toFixed(1)} s`;
      } catch (error) {
        line.textContent = `Cannot be read as a picture: ${error.message}`;
        line.classList.add("error");
      }
      figure.dataset.done = "";
    }
  });
  await work;
}

files.addEventListener("change", () => {
  add(files.files);
  files.value = "";
});
dtype?.addEventListener("change", () => { work = work.then(load); });
addEventListener("paste", (event) => { if (!files.disabled) add(event.clipboardData.files); });
addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
addEventListener("dragleave", () => drop.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (!files.disabled) add(event.dataTransfer.files);
});
globalThis.blip = { caption, readPixels };  // for the console
await load();
