// Runs every call of the official Node client against an emulator, and prints what came back as JSON.
// Usage: node calls.mjs openai6|openai7   with BASE_URL, HTTPS_BASE_URL, API_KEY and RECORDING (base64) set.
import { DefaultAzureCredential, ManagedIdentityCredential, getBearerTokenProvider } from "@azure/identity";

const { AzureOpenAI, OpenAI } = await import(process.argv[2]);
const { BASE_URL, HTTPS_BASE_URL, API_KEY, RECORDING } = process.env;
const apiVersion = "2025-01-01-preview";
const model = "gpt-audio-1.5";
const scope = "https://cognitiveservices.azure.com/.default";
const prompt = [{ role: "user", content: "Is a golden retriever a good family dog?" }];
const spoken = { model, modalities: ["text", "audio"], audio: { voice: "alloy", format: "wav" } };
const recording = [
  {
    role: "user",
    content: [
      { type: "text", text: "Describe the recording." },
      { type: "input_audio", input_audio: { data: RECORDING, format: "wav" } },
    ],
  },
];

const azure = (settings = {}) =>
  new AzureOpenAI({ endpoint: BASE_URL, apiVersion, apiKey: API_KEY, maxRetries: 0, ...settings });
const keyless = (credential, settings = {}) =>
  azure({ apiKey: undefined, azureADTokenProvider: getBearerTokenProvider(credential, scope), ...settings });
const plain = (path, settings = {}) =>
  new OpenAI({ baseURL: BASE_URL + path, apiKey: API_KEY, maxRetries: 0, ...settings });

const brief = (reply) => {
  const { message, finish_reason: finishReason } = reply.choices[0];
  return {
    finishReason,
    content: message.content,
    transcript: message.audio?.transcript ?? null,
    audioBytes: message.audio ? Buffer.from(message.audio.data, "base64").length : 0,
    usage: reply.usage,
  };
};
const speak = async (client, changes = {}) =>
  brief(await client.chat.completions.create({ ...spoken, messages: prompt, ...changes }));

const stream = async (client) => {
  const chunks = await client.chat.completions.create({
    ...spoken,
    messages: prompt,
    audio: { voice: "alloy", format: "pcm16" },
    stream: true,
    stream_options: { include_usage: true },
  });
  const seen = { transcript: "", audioBytes: 0, finishReason: null, usage: null };
  for await (const chunk of chunks) {
    seen.usage = chunk.usage ?? seen.usage;
    const choice = chunk.choices[0];
    if (!choice) continue;
    seen.finishReason = choice.finish_reason ?? seen.finishReason;
    seen.transcript += choice.delta.audio?.transcript ?? "";
    seen.audioBytes += Buffer.from(choice.delta.audio?.data ?? "", "base64").length;
  }
  return seen;
};

const turns = async (client) => {
  const first = await client.chat.completions.create({ ...spoken, messages: recording });
  const followUp = [
    ...recording,
    { role: "assistant", audio: { id: first.choices[0].message.audio.id } },
    { role: "user", content: "How long was it?" },
  ];
  return brief(await client.chat.completions.create({ model, messages: followUp }));
};

const refused = async (call) => {
  try {
    await call();
    return { name: "none" };
  } catch (error) {
    return {
      name: error.constructor.name,
      status: error.status ?? null,
      code: error.code ?? null,
      type: error.type ?? null,
      param: error.param ?? null,
      message: error.message,
      requestID: error.requestID ?? null,
    };
  }
};

const results = {
  azure: await speak(azure()),
  azureDeployment: await speak(azure({ deployment: "my-audio" })),
  azureTls: await speak(azure({ endpoint: HTTPS_BASE_URL })),
  azureV1: await speak(plain("/openai/v1/")),
  openai: await speak(plain("/v1")),
  keyless: await speak(keyless(new DefaultAzureCredential())),
  recording: await speak(azure(), { messages: recording }),
  recordingInText: await speak(azure(), { messages: recording, modalities: ["text"], audio: undefined }),
  turns: await turns(azure()),
  stream: await stream(azure()),
  streamOpenai: await stream(plain("/v1")),
  errors: {
    key: await refused(() => speak(azure({ apiKey: "wrong" }))),
    keyOpenai: await refused(() => speak(plain("/v1", { apiKey: "wrong" }))),
    token: await refused(() => speak(azure({ apiKey: undefined, azureADTokenProvider: async () => "a.b.c" }))),
    deployment: await refused(() => speak(azure(), { model: "nobody-deployed-this" })),
    voice: await refused(() => speak(azure(), { audio: { voice: "bob", format: "wav" } })),
    noAudio: await refused(() => speak(azure(), { modalities: ["text"], audio: undefined })),
    audioId: await refused(() =>
      speak(azure(), { messages: [...prompt, { role: "assistant", audio: { id: "audio_x" } }, ...prompt] }),
    ),
    filter: await refused(() => speak(azure(), { messages: [{ role: "user", content: "emulator_block_prompt" }] })),
  },
};
// The virtual machine's way last: it needs the App Service variables gone.
delete process.env.IDENTITY_ENDPOINT;
delete process.env.IDENTITY_HEADER;
process.env.AZURE_POD_IDENTITY_AUTHORITY_HOST = BASE_URL;
results.virtualMachine = await speak(keyless(new ManagedIdentityCredential()));
console.log(JSON.stringify(results));
