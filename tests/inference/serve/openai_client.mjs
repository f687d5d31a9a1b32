// The npm client `openai` asks a server of tests/fixtures/chat_tiny: node openai_client.mjs URL MODEL
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: 'any', maxRetries: 0 });
const messages = [{ role: 'user', content: 'What does os.path.isdir do?' }];
const parameters = { type: 'object', properties: { on: { type: 'boolean' } }, required: ['on'], additionalProperties: false };
const tools = ['f', 'g'].map((name) => ({ type: 'function', function: { name, parameters, strict: true } }));
const chat = (more) => client.chat.completions.create({ model, messages, seed: 3, ...more });

assert.deepEqual((await client.models.list()).data.map((one) => one.id), [model]);
assert.equal((await client.models.retrieve(model)).id, model);

const whole = await chat({ temperature: 0 });
assert.equal(whole.choices[0].finish_reason, 'stop');
let text = '';
let usage = null;
for await (const chunk of await chat({ temperature: 0, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta.content ?? '';
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.deepEqual(usage.completion_tokens, whole.usage.completion_tokens);

assert.equal((await chat({ n: 3 })).choices.length, 3);
assert.equal((await chat({ max_tokens: 2 })).choices[0].finish_reason, 'length');
const listed = (await chat({ temperature: 0, logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content;
assert.ok(listed.every((token) => token.logprob === token.top_logprobs[0].logprob));
const word = text.split(' ')[1];
assert.equal((await chat({ temperature: 0, stop: [word] })).choices[0].message.content, text.split(word)[0]);

const schema = { type: 'json_schema', json_schema: { name: 'x', schema: parameters, strict: true } };
assert.equal(typeof JSON.parse((await chat({ response_format: schema })).choices[0].message.content).on, 'boolean');
const once = { tools, tool_choice: 'required', parallel_tool_calls: false };
const called = await chat(once);
const [call] = called.choices[0].message.tool_calls;
assert.equal(typeof JSON.parse(call.function.arguments).on, 'boolean');
const result = { role: 'tool', tool_call_id: call.id, content: 'done' };
assert.ok((await chat({ messages: [...messages, called.choices[0].message, result], tools })).choices.length);
const runner = client.chat.completions.stream({ model, messages, seed: 3, ...once });
assert.ok((await runner.finalChatCompletion()).choices[0].message.tool_calls.length);

const completion = await client.completions.create({ model, prompt: 'def ', max_tokens: 4, echo: true, logprobs: 1 });
assert.ok(completion.choices[0].text.startsWith('def '));
const response = await client.responses.create({ model, input: messages[0].content, temperature: 0 });
assert.equal(response.output_text, text);
const streamed = client.responses.stream({ model, input: messages[0].content, temperature: 0 });
assert.equal((await streamed.finalResponse()).output_text, text);

await assert.rejects(chat({ temperature: 3 }), (error) => error instanceof OpenAI.BadRequestError && error.param === 'temperature');
await assert.rejects(chat({ model: 'gpt' }), OpenAI.NotFoundError);
await assert.rejects(chat({ messages: [] }), OpenAI.BadRequestError);
const left = await chat({ stream: true });
for await (const _ of left) break; // which aborts the request
assert.ok((await chat({})).choices.length);
console.log('all is well');
