// Connects socket.io-client, says one thing at each connection, and prints what happens, one line each:
// node socket_io.mjs URL TRANSPORTS
import { io } from "socket.io-client";

const [url, transports] = process.argv.slice(2);
const socket = io(url, {
  path: "/ws/",
  transports: transports.split(","),
  query: { api_key: "t:a", platform: "web" },
  reconnectionDelay: 50,
});

socket.on("connect", () => {
  const { engine } = socket.io;
  console.log(`connected by ${engine.transport.name}`);
  engine.on("upgrade", (transport) => console.log(`upgraded to ${transport.name}`));
  const said = { ver: 1, msg_id: "m1", type: "sys_std", payload: "hello" };
  socket.emit("message", said, (...values) => console.log(`acknowledged with ${JSON.stringify(values)}`));
});
socket.on("message", ({ type, payload }) => {
  if (type === "sys_std") console.log(`heard ${payload.message_segment.data.length}`);
});
socket.on("disconnect", (reason) => console.log(`disconnected: ${reason}`));
socket.on("connect_error", (error) => console.log(`not connected: ${error.message}`));
