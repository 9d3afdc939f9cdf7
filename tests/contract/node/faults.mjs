// One call of the official Node client with its own retries, for the faults that the caller has set.
// Usage: node faults.mjs openai6|openai7 RETRIES   with BASE_URL and API_KEY set.
const { AzureOpenAI } = await import(process.argv[2]);
const client = new AzureOpenAI({
  endpoint: process.env.BASE_URL,
  apiKey: process.env.API_KEY,
  apiVersion: "2025-01-01-preview",
  maxRetries: Number(process.argv[3]),
});
try {
  const reply = await client.chat.completions.create({
    model: "gpt-audio-1.5",
    modalities: ["text", "audio"],
    audio: { voice: "alloy", format: "wav" },
    messages: [{ role: "user", content: "Hello" }],
  });
  console.log(JSON.stringify({ error: null, audio: Boolean(reply.choices?.[0]?.message?.audio?.data) }));
} catch (error) {
  console.log(JSON.stringify({ error: error.constructor.name, status: error.status ?? null }));
}
