// Sessions of the official Node client against an emulator, over TLS, printed as JSON.
// Usage: node realtime.mjs openai6|openai7   with HTTPS_BASE_URL, API_KEY and NODE_EXTRA_CA_CERTS set.
import { DefaultAzureCredential, getBearerTokenProvider } from "@azure/identity";

const sdk = process.argv[2];
const { AzureOpenAI, OpenAI } = await import(sdk);
const { OpenAIRealtimeWS } = await import(`${sdk}/realtime/ws`);
const { HTTPS_BASE_URL, API_KEY } = process.env;
const apiVersion = "2025-04-01-preview";
const scope = "https://cognitiveservices.azure.com/.default";
const model = "gpt-realtime";

// The session of Azure's quickstart for JavaScript.
const session = {
  type: "realtime",
  instructions: "You are a helpful assistant. You respond by voice and text.",
  output_modalities: ["audio"],
  audio: {
    input: {
      transcription: { model: "whisper-1" },
      format: { type: "audio/pcm", rate: 24000 },
      turn_detection: {
        type: "server_vad",
        threshold: 0.5,
        prefix_padding_ms: 300,
        silence_duration_ms: 200,
        create_response: true,
      },
    },
    output: { voice: "alloy", format: { type: "audio/pcm", rate: 24000 } },
  },
};

const talk = (rt) =>
  new Promise((resolve, reject) => {
    const seen = { kinds: [], audioBytes: 0, transcript: "", done: null, sessions: [] };
    const timer = setTimeout(() => reject(new Error(`no response.done: ${seen.kinds}`)), 20000);
    rt.on("error", (error) => {
      clearTimeout(timer);
      resolve({ error: error.message, code: error.error?.code ?? null, kinds: seen.kinds });
    });
    rt.on("event", (event) => {
      if (seen.kinds.at(-1) !== event.type) seen.kinds.push(event.type);
    });
    rt.on("session.created", (event) => {
      seen.sessions.push(event.session.id);
      rt.send({ type: "session.update", session });
    });
    rt.on("session.updated", (event) => {
      seen.sessions.push(event.session.id);
      const content = [{ type: "input_text", text: "Please assist the user." }];
      rt.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
      rt.send({ type: "response.create" });
    });
    rt.on("response.output_audio.delta", (event) => {
      seen.audioBytes += Buffer.from(event.delta, "base64").length;
    });
    rt.on("response.output_audio_transcript.delta", (event) => {
      seen.transcript += event.delta;
    });
    rt.on("response.done", (event) => {
      clearTimeout(timer);
      seen.done = event.response.output[0].content[0].transcript;
      seen.status = event.response.status;
      seen.url = rt.url.pathname + rt.url.search;
      rt.close();
      resolve(seen);
    });
  });

const headers = { "api-key": API_KEY };
const plain = (path, settings = {}) => new OpenAI({ baseURL: HTTPS_BASE_URL + path, apiKey: API_KEY, ...settings });
const azure = new AzureOpenAI({ endpoint: HTTPS_BASE_URL, apiKey: API_KEY, apiVersion, deployment: model });
const provider = getBearerTokenProvider(new DefaultAzureCredential(), scope);
const keyless = new AzureOpenAI({
  endpoint: HTTPS_BASE_URL,
  azureADTokenProvider: provider,
  apiVersion,
  deployment: model,
});

const results = {
  azureV1: await talk(new OpenAIRealtimeWS({ model, options: { headers } }, plain("/openai/v1"))),
  azureV1Token: await talk(
    new OpenAIRealtimeWS({ model }, plain("/openai/v1", { apiKey: await provider() })),
  ),
  openai: await talk(new OpenAIRealtimeWS({ model }, plain("/v1"))),
  azureClient: await talk(await OpenAIRealtimeWS.azure(azure)),
  azureClientKeyless: await talk(await OpenAIRealtimeWS.azure(keyless)),
  wrongKey: await talk(new OpenAIRealtimeWS({ model }, plain("/v1", { apiKey: "wrong" }))),
  noDeployment: await talk(new OpenAIRealtimeWS({ model: "nobody" }, plain("/v1"))),
};
console.log(JSON.stringify(results));
process.exit(0);
