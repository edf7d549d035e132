// The chat page: one conversation, streamed from /v1/chat/completions. All text enters the page by textContent.

const WORDS = {
  en: {
    new: "New conversation", settings: "Settings", temperature: "Temperature", maxTokens: "Longest answer, in tokens",
    system: "System prompt", systemHint: "How the model should behave", welcome: "What would you like to ask?",
    placeholder: "Message", hint: "Enter sends, Shift + Enter starts a new line", send: "Send", stop: "Stop",
    copy: "Copy", copied: "Copied", retry: "Try again", stopped: "stopped", cut: "cut at the longest answer",
    speed: (n) => `${n} tokens/s`, count: (n) => `${n} tokens`,
    gone: "The service cannot be reached. Is it still running?", broken: "The connection broke before the answer ended.",
  },
  zh: {
    new: "新对话", settings: "设置", temperature: "温度", maxTokens: "回答的最大长度（token）",
    system: "系统提示", systemHint: "希望模型怎样回答", welcome: "想问些什么？",
    placeholder: "输入消息", hint: "回车发送，Shift + 回车换行", send: "发送", stop: "停止",
    copy: "复制", copied: "已复制", retry: "重试", stopped: "已停止", cut: "达到最大长度",
    speed: (n) => `${n} token/秒`, count: (n) => `${n} 个 token`,
    gone: "连不上服务，它还在运行吗？", broken: "回答还没结束，连接就断了。",
  },
};
const language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
const words = WORDS[language];
const $ = (id) => document.getElementById(id);
const log = $("log"), form = $("form"), input = $("input"), send = $("send"), speed = $("speed");

let model = null;       // the id that requests must name
let turns = [];         // {role, content}
let running = null;     // the AbortController of the answer being written
const welcome = $("welcome");

// --- words and settings

document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
for (const node of document.querySelectorAll("[data-text]")) node.textContent = words[node.dataset.text];
for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = words[node.dataset.placeholder];
input.setAttribute("aria-label", words.placeholder);

const settings = { temperature: "0.7", "max-tokens": "512", system: "" };
for (const id of Object.keys(settings)) {
  const node = $(id);
  try { settings[id] = localStorage.getItem(`etymon.${id}`) ?? settings[id]; } catch { /* storage may be off */ }
  node.value = settings[id];
  node.addEventListener("input", () => {
    if (!node.validity.valid || (node.type === "number" && !node.value)) return;
    settings[id] = node.value;
    try { localStorage.setItem(`etymon.${id}`, node.value); } catch { /* as above */ }
    showTemperature();
  });
}
function showTemperature() { $("temperature-value").textContent = Number(settings.temperature).toFixed(2); }
showTemperature();

// --- drawing

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Fenced code and `code` become elements; everything else stays the text that it is.
function draw(body, content) {
  const blocks = [];
  for (const [i, part] of content.split(/^```/m).entries()) {
    if (i % 2) {
      const pre = element("pre");
      pre.append(element("code", "", part.replace(/^[^\n]*\n?/, "").replace(/\n$/, "")));
      blocks.push(pre);
    } else {
      const text = (i ? part.replace(/^\s*\n/, "") : part).replace(/\n+$/, "");
      if (!text) continue;
      const div = element("div", "text");
      for (const [j, piece] of text.split(/`([^`\n]+)`/).entries())
        if (piece) div.append(j % 2 ? element("code", "", piece) : piece);
      blocks.push(div);
    }
  }
  body.replaceChildren(...blocks);
}

function addUser(content) {
  const turn = element("div", "turn user");
  turn.append(element("div", "text", content));
  log.append(turn);
}

function addAssistant() {
  const turn = element("div", "turn assistant live");
  const view = { turn, body: element("div", "body"), fault: element("p", "fault"), tools: element("div", "tools") };
  turn.append(view.body, view.tools);
  log.append(turn);
  return view;
}

const nearEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 80;
const toEnd = () => { log.scrollTop = log.scrollHeight; };

function button(text, act) {
  const node = element("button", "quiet", text);
  node.type = "button";
  node.addEventListener("click", () => act(node));
  return node;
}

function finishTools(view, content, note) {
  view.turn.classList.remove("live");
  if (content)
    view.tools.append(button(words.copy, async (node) => {
      await copy(content);
      node.textContent = words.copied;
      setTimeout(() => { node.textContent = words.copy; }, 1500);
    }));
  const again = button(words.retry, () => retry(view));
  again.classList.add("retry");
  view.tools.append(again);
  if (note) view.tools.append(element("span", "note", note));
}

async function copy(text) {
  try { return await navigator.clipboard.writeText(text); } catch { /* plain http from another machine has none */ }
  const area = element("textarea", "", text);
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// --- talking to the service

async function fail(response) {
  let message = `${response.status} ${response.statusText}`;
  try { message = (await response.json()).error.message; } catch { /* not ours: keep the status */ }
  throw new Error(message);
}

async function modelId() {
  const response = await fetch("v1/models");
  if (!response.ok) await fail(response);
  return (await response.json()).data[0].id;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error(words.broken);
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function answer() {
  for (const node of log.querySelectorAll(".retry")) node.remove(); // only the last answer can be tried again
  const view = addAssistant();
  const stopper = new AbortController();
  running = stopper;
  busy(true);
  let content = "", tokens = 0, first = 0, note = "", frame = 0;
  const paint = () => {
    frame = 0;
    const follow = nearEnd();
    draw(view.body, content);
    if (follow) toEnd();
    if (tokens > 1) speed.textContent = words.speed(rate(tokens, first));
  };
  toEnd();
  try {
    model ??= await modelId();
    const system = settings.system.trim() ? [{ role: "system", content: settings.system.trim() }] : [];
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      signal: stopper.signal,
      body: JSON.stringify({
        model, messages: [...system, ...turns], stream: true, stream_options: { include_usage: true },
        temperature: Number(settings.temperature), max_tokens: Number(settings["max-tokens"]),
      }),
    });
    if (!response.ok) await fail(response);
    for await (const event of events(response)) {
      if (event.usage && tokens) {
        tokens = event.usage.completion_tokens;
        note = [words.count(tokens), words.speed(rate(tokens, first)), note].filter(Boolean).join(" · ");
      }
      const choice = event.choices[0];
      if (!choice) continue;
      if (choice.finish_reason === "length") note = words.cut;
      if (choice.delta.content) {
        first ||= performance.now();
        tokens += 1;
        content += choice.delta.content;
        frame ||= requestAnimationFrame(paint);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") note = words.stopped;
    else {
      view.fault.textContent = error instanceof TypeError ? words.gone : error.message;
      view.turn.insertBefore(view.fault, view.tools);
    }
  }
  if (frame) cancelAnimationFrame(frame);
  if (running !== stopper) return; // a new conversation has begun
  paint();
  if (content) turns.push({ role: "assistant", content });
  finishTools(view, content, note);
  if (nearEnd()) toEnd();
  running = null;
  busy(false);
}

const rate = (tokens, first) => {
  const value = ((tokens - 1) * 1000) / Math.max(performance.now() - first, 1);
  return value < 10 ? value.toFixed(1) : Math.round(value);
};

function retry(view) {
  if (turns.at(-1)?.role === "assistant") turns.pop();
  view.turn.remove();
  answer();
}

// --- the form

function busy(on) {
  send.classList.toggle("busy", on);
  send.setAttribute("aria-label", on ? words.stop : words.send);
  send.title = on ? words.stop : words.send;
  ready();
}
function ready() { send.disabled = !running && !input.value.trim(); }

function submit() {
  const content = input.value.trim();
  if (running || !content) return;
  welcome.remove();
  if (turns.at(-1)?.role === "user") turns.pop(); // its answer failed: this message takes its place
  turns.push({ role: "user", content });
  addUser(content);
  input.value = "";
  grow();
  answer();
}

function grow() {
  if (CSS.supports("field-sizing", "content")) return;
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else submit();
});
input.addEventListener("input", () => { grow(); ready(); });
input.addEventListener("keydown", (event) => {
  // 229: Enter that only confirms what an input method composed, where isComposing is already false (Safari).
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !$("settings").matches(":popover-open")) running.abort();
});
$("new").addEventListener("click", () => {
  const old = running;
  running = null;
  old?.abort();
  turns = [];
  speed.textContent = "";
  log.replaceChildren(welcome);
  busy(false);
  input.focus();
});

busy(false);
modelId().then((id) => { model = id; $("model").textContent = document.title = id; }, () => {});
