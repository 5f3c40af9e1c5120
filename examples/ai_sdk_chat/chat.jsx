// A page with the Vercel AI SDK's useChat on a Trunkline agent: `api` is all that names Trunkline.
// Start `make run`, then in this folder:
//   npm install --no-save ai @ai-sdk/react react react-dom esbuild
//   npx esbuild chat.jsx --bundle --jsx=automatic --servedir=. --outdir=.
import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

const query = new URLSearchParams(location.search);
const api = query.get("api") ?? "http://127.0.0.1:8080/ai/demo/guide/chat";
// With tokens: headers: async () => ({ authorization: `Bearer ${await fetchToken()}` })
const transport = new DefaultChatTransport({ api });

function Part({ part }) {
  if (part.type === "reasoning") return <em>{part.text}</em>;
  if (part.type === "text") return <span>{part.text}</span>;
  if (part.type === "dynamic-tool") return <code>{part.toolName}()</code>;
  return null;
}

function Chat({ id, messages: before }) {
  // `resume` shows the reply that is being written when the page loads.
  const { messages, sendMessage, regenerate, stop, status, error } = useChat({
    id,
    messages: before,
    resume: true,
    transport,
  });
  const [text, setText] = useState("");
  const isBusy = status === "submitted" || status === "streaming";

  async function stopReply() {
    // The SDK's stop only disconnects, and a disconnect cancels nothing.
    await fetch(`${api}/${id}/stop`, { method: "POST" });
    stop();
  }

  function submit(event) {
    event.preventDefault();
    sendMessage({ text });
    setText("");
  }

  return (
    <main>
      {messages.map((message) => (
        <p key={message.id} className={message.role}>
          {message.parts.map((part, index) => (
            <Part key={index} part={part} />
          ))}
        </p>
      ))}
      {error && <p className="error">{error.message}</p>}
      <form onSubmit={submit}>
        <input value={text} onChange={(event) => setText(event.target.value)} placeholder="Say something" />
        {isBusy ? (
          <button type="button" id="stop" onClick={stopReply}>
            Stop
          </button>
        ) : (
          <button id="send">Send</button>
        )}
        <button type="button" id="regenerate" disabled={isBusy} onClick={() => regenerate()}>
          Regenerate
        </button>
      </form>
      <small id="status">{status}</small>
    </main>
  );
}

function App() {
  const [id] = useState(() => query.get("chat") ?? crypto.randomUUID());
  const [messages, setMessages] = useState(null);
  useEffect(() => {
    query.set("chat", id);
    history.replaceState(null, "", `?${query}`);
    // The log is the history: no table of messages, no Redis.
    fetch(`${api}/${id}`)
      .then((response) => response.json())
      .then((chat) => setMessages(chat.messages));
  }, [id]);
  return messages && <Chat id={id} messages={messages} />;
}

createRoot(document.getElementById("root")).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
