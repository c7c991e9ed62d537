import { useChat } from "@ai-sdk/react";
import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { RelayChatTransport } from "relay-streams/ai";

if (!location.hash) location.hash = crypto.randomUUID();
const id = location.hash.slice(1);
const transport = new RelayChatTransport();
const load = async () => (await fetch(`/api/chats/${id}`)).json();

function Part({ part }) {
  if (part.type === "text") return <p>{part.text}</p>;
  if (part.type === "tool-weather") return <pre>weather, {part.state}: {JSON.stringify(part.output ?? part.input)}</pre>;
  return null;
}

function Chat({ loaded }) {
  const { messages, setMessages, sendMessage, stop, status, error } = useChat({ id, messages: loaded, resume: true, transport });
  const [text, setText] = useState("What is the weather in Zürich?");
  // An answer that has ended while the page was loading is live no more: the backend has it.
  const waits = status === "ready" && messages.at(-1)?.role === "user";
  useEffect(() => {
    if (waits) load().then((saved) => setMessages((shown) => (saved.length > shown.length ? saved : shown)));
  }, [waits]);
  return (
    <>
      <div id="messages">
        {messages.map((message) => (
          <section key={message.id}>
            <h2>{message.role}</h2>
            {message.parts.map((part, at) => <Part key={at} part={part} />)}
          </section>
        ))}
      </div>
      <form onSubmit={(event) => (event.preventDefault(), sendMessage({ text }))}>
        <input value={text} onChange={({ target }) => setText(target.value)} size="60" />
        <button id="send">Send</button>
        <button id="stop" type="button" onClick={stop}>Stop</button>
      </form>
      <output id="status">{status}</output>
      <p id="error" role="alert">{error?.message}</p>
    </>
  );
}

const root = createRoot(document.getElementById("root"));
load().then((loaded) => root.render(<StrictMode><Chat loaded={loaded} /></StrictMode>));
