// Chat widget for web pages, served by a Trunkline edge:
//
//   <script src="https://edge.example/api/v1/embed/<bot>/widget.js" data-title="Help" async></script>
//
// The protocol is LangBot's for embedded bots. Messages are displayed as text, never as HTML.
(function () {
  "use strict";

  var script = document.currentScript;
  var source = script && new URL(script.src).href.match(/^(.*)\/api\/v1\/embed\/([^/?#]+)\/widget\.js/);
  if (!source || document.getElementById("trunkline-chat")) return;
  var base = source[1] + "/api/v1/embed/";
  var bot = base + source[2];
  var title = script.getAttribute("data-title") || "Chat";

  var PING_MS = 30000;
  var RETRY_MS = 1000;
  var MAX_RETRY_MS = 30000;
  var MAX_IMAGE_BYTES = 5 * 1024 * 1024;
  var IMAGE = /^(https?:\/\/|data:image\/(png|jpeg|gif|webp|bmp|avif);base64,)/i;

  // The session, which nobody else can guess, is all that a visitor is known by.

  function newSession() {
    var bytes = crypto.getRandomValues(new Uint8Array(16));
    bytes[6] = (bytes[6] & 15) | 64;
    bytes[8] = (bytes[8] & 63) | 128;
    var hex = Array.from(bytes, function (byte) {
      return byte.toString(16).padStart(2, "0");
    }).join("");
    return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  }

  function storedSession() {
    var name = "trunkline-chat:" + bot;
    try {
      var found = localStorage.getItem(name);
      if (!found) localStorage.setItem(name, (found = newSession()));
      return found;
    } catch (error) {
      // Without storage, the session ends with the page.
      return newSession();
    }
  }

  var query = "?session_id=" + storedSession();

  // The page

  var host = document.createElement("div");
  host.id = "trunkline-chat";
  var root = host.attachShadow({ mode: "open" });
  root.innerHTML =
    "<style>" +
    ":host{all:initial;position:fixed;right:20px;bottom:20px;z-index:2147483000;" +
    "font:14px/1.5 system-ui,sans-serif;color:#1f2937}" +
    "*{box-sizing:border-box}button{font:inherit;border:0;background:none;cursor:pointer;color:inherit;padding:4px 8px}" +
    "button:focus-visible,textarea:focus-visible{outline:2px solid #2563eb;outline-offset:2px}" +
    "#toggle{width:56px;height:56px;border-radius:50%;padding:10px;background:#fff;" +
    "box-shadow:0 4px 16px #0004}#toggle img{width:100%;display:block}" +
    "#panel{position:absolute;right:0;bottom:72px;width:min(370px,calc(100vw - 40px));" +
    "height:min(560px,calc(100vh - 112px));display:flex;flex-direction:column;background:#fff;" +
    "border-radius:14px;box-shadow:0 8px 32px #0004;overflow:hidden}#panel[hidden]{display:none}" +
    "header{display:flex;align-items:center;gap:8px;padding:10px 12px;background:#2563eb;color:#fff}" +
    "header b{flex:1}#dot{width:9px;height:9px;border-radius:50%;background:#fbbf24}#dot.on{background:#4ade80}" +
    "#log{flex:1;overflow-y:auto;padding:12px;display:flex;flex-direction:column;gap:8px}" +
    ".m{max-width:85%;padding:8px 12px;border-radius:14px;white-space:pre-wrap;overflow-wrap:anywhere}" +
    ".user{align-self:flex-end;background:#2563eb;color:#fff}.assistant{align-self:flex-start;background:#f3f4f6}" +
    ".open::after{content:' …';opacity:.6}.m img{display:block;max-width:100%;border-radius:8px;margin-top:4px}" +
    ".vote{display:flex;gap:2px;margin-top:4px}.vote button{opacity:.5;padding:0 4px}.vote .on{opacity:1;color:#2563eb}.down svg{transform:scale(1,-1)}" +
    "#note{padding:6px 12px;background:#fef3c7;color:#92400e}#note:empty{display:none}" +
    "form{display:flex;gap:4px;padding:8px;border-top:1px solid #e5e7eb;align-items:flex-end}" +
    "textarea{flex:1;font:inherit;resize:none;border:1px solid #d1d5db;border-radius:10px;padding:8px;max-height:120px}" +
    "#picked:empty{display:none}#picked{padding:4px 12px}#picked img{height:48px;border-radius:6px}" +
    "#pick{font-size:22px;line-height:1;padding:8px}#send{background:#2563eb;color:#fff;border-radius:10px;padding:8px 12px}#send:disabled{opacity:.4}" +
    "</style>" +
    '<section id="panel" role="dialog" hidden><header><span id="dot"></span><b></b>' +
    '<button id="reset" type="button" title="Start over" aria-label="Start over">↺</button>' +
    '<button id="close" type="button" title="Close" aria-label="Close">✕</button></header>' +
    '<div id="log" role="log" aria-live="polite"></div><div id="note" role="alert"></div><div id="picked"></div>' +
    '<form><button id="pick" type="button" title="Send an image" aria-label="Send an image">+</button>' +
    '<textarea rows="1" placeholder="Type a message…" aria-label="Message"></textarea>' +
    '<button id="send" disabled>Send</button></form><input type="file" accept="image/*" hidden></section>' +
    '<button id="toggle" type="button" aria-label="Open chat"><img alt=""></button>';

  function find(selector) {
    return root.querySelector(selector);
  }

  var panel = find("#panel"), log = find("#log"), text = find("textarea"), file = find("input");
  find("header b").textContent = title;
  panel.setAttribute("aria-label", title);
  find("#toggle img").src = base + "logo";

  function note(words) {
    find("#note").textContent = words || "";
  }

  // Messages, by their ids: a reply is shown again with more text until it is final.

  var shown = new Map();

  function show(record) {
    var known = shown.get(record.id);
    var atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    var element = document.createElement("div");
    var isUser = record.role === "user";
    element.className = "m " + (isUser ? "user" : "assistant") + (record.is_final === false ? " open" : "");
    // A chain may hold anything that its sender has put there.
    var chain = (record.message_chain || []).filter(function (part) {
      return part && typeof part === "object";
    });
    var words = chain.filter(function (part) {
      return part.type === "Plain";
    });
    var plain = words.map(function (part) { return part.text || ""; }).join("");
    element.append(plain || (chain.length ? "" : record.content || ""));
    chain.forEach(function (part) {
      var url = part.type === "Image" && (part.base64 || part.url);
      if (!url) return;
      if (!/^(data|https?):/i.test(url)) url = "data:image/png;base64," + url;
      if (!IMAGE.test(url)) return;
      var picture = document.createElement("img");
      picture.src = url;
      picture.alt = "Image";
      element.append(picture);
    });
    if (!isUser && record.is_final !== false) element.append(votes(record.id));
    if (known) known.replaceWith(element);
    else log.append(element);
    shown.set(record.id, element);
    if (atEnd || isUser) log.scrollTop = log.scrollHeight;
  }

  // No emoji: not every machine has a font for them.
  var THUMB =
    '<svg viewBox="0 0 24 24" width="16" height="16" fill="currentColor" aria-hidden="true">' +
    '<path d="M2 10h4v11H2zM8 21V10l5-8c1.7 0 2.5 1.2 2.2 2.700L14.4 9H20c1.2 0 2 1.1 1.7 2.300l-2 8' +
    'c-.2 1-1 1.7-2 1.7z"/></svg>';

  function votes(id) {
    var row = document.createElement("div");
    row.className = "vote";
    [["", 1, "Good answer"], ["down", 2, "Bad answer"]].forEach(function (vote) {
      var button = document.createElement("button");
      button.type = "button";
      button.className = vote[0];
      button.innerHTML = THUMB;
      button.title = vote[2];
      button.setAttribute("aria-label", vote[2]);
      button.onclick = function () {
        var wasOn = button.classList.contains("on");
        row.querySelectorAll("button").forEach(function (each) { each.classList.remove("on"); });
        if (!wasOn) button.classList.add("on");
        call("/feedback", { message_id: id, feedback_type: wasOn ? 3 : vote[1] }).catch(function () {});
      };
      row.append(button);
    });
    return row;
  }

  function clear() {
    shown.clear();
    log.replaceChildren();
  }

  // HTTP

  function call(path, body) {
    var options = body ? { method: "POST", body: JSON.stringify(body) } : {};
    if (body) options.headers = { "Content-Type": "application/json" };
    return fetch(bot + path, options).then(function (response) {
      return response.json().then(function (answer) {
        if (answer.code !== 0) throw new Error(answer.msg);
        return answer.data;
      });
    });
  }

  // The socket: connected while the panel is open, and again after a loss.

  var socket = null, pings = 0, wanted = false, retryMs = RETRY_MS;

  function connect() {
    wanted = true;
    if (socket) return;
    var own = (socket = new WebSocket(bot.replace(/^http/, "ws") + "/ws/connect" + query));
    var live = [];
    var hasHistory = false;
    own.onopen = function () {
      own.send(JSON.stringify({ type: "authenticate", token: "" }));
    };
    own.onmessage = function (event) {
      var frame = JSON.parse(event.data);
      if (frame.type === "connected") {
        retryMs = RETRY_MS;
        ready(true);
        note();
        pings = setInterval(function () { own.send('{"type":"ping"}'); }, PING_MS);
        // Frames that arrive before the history are displayed after it.
        call("/messages/person" + query)
          .then(function (data) {
            clear();
            data.messages.concat(live).forEach(show);
          })
          .catch(function () { live.forEach(show); })
          .finally(function () { hasHistory = true; });
      } else if (frame.type === "user_message" || frame.type === "response") {
        if (hasHistory) show(frame.data);
        else live.push(frame.data);
      } else if (frame.type === "error") {
        note(frame.message);
      }
    };
    own.onclose = function () {
      clearInterval(pings);
      socket = null;
      ready(false);
      if (wanted) setTimeout(function () { if (wanted) connect(); }, retryMs);
      retryMs = Math.min(2 * retryMs, MAX_RETRY_MS);
    };
  }

  function ready(is) {
    find("#dot").classList.toggle("on", is);
    find("#send").disabled = !is;
  }

  // Input

  var picked = "";

  function pick(url) {
    picked = url;
    file.value = "";
    var picture = document.createElement("img");
    picture.src = url;
    find("#picked").replaceChildren(...(url ? [picture] : []));
  }

  function send() {
    var words = text.value.trim();
    if (find("#send").disabled || !(words || picked)) return;
    var chain = [];
    if (words) chain.push({ type: "Plain", text: words });
    if (picked) chain.push({ type: "Image", base64: picked });
    note();
    socket.send(JSON.stringify({ type: "message", message: chain, stream: true }));
    text.value = "";
    pick("");
    text.focus();
  }

  find("#toggle").onclick = find("#close").onclick = function () {
    panel.hidden = !panel.hidden;
    if (!panel.hidden) {
      connect();
      text.focus();
    }
  };
  find("#reset").onclick = function () {
    call("/reset/person" + query, {}).then(clear, function (error) { note(error.message); });
  };
  find("form").onsubmit = function (event) {
    event.preventDefault();
    send();
  };
  text.onkeydown = function (event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  find("#pick").onclick = function () { file.click(); };
  file.onchange = function () {
    var chosen = file.files[0];
    if (!chosen) return;
    if (!/^image\//.test(chosen.type)) return note("Only images can be sent");
    if (chosen.size > MAX_IMAGE_BYTES) return note("An image may have 5 MB");
    var reader = new FileReader();
    reader.onload = function () { pick(reader.result); };
    reader.readAsDataURL(chosen);
  };

  function mount() {
    document.body.append(host);
  }
  if (document.body) mount();
  else document.addEventListener("DOMContentLoaded", mount);
})();
