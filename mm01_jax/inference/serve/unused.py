"""Fields of OpenAI's API that change no answer here: who asks, what else OpenAI keeps, how soon it answers."""

from mm01_jax.inference.serve import fields
from mm01_jax.inference.serve.fields import Field

_LIFETIME = {"ttl": Field(fields.text)}
OF_A_REQUEST = {
    "metadata": Field(fields.labels, {}),
    "prompt_cache_key": Field(fields.text),
    "prompt_cache_options": Field(fields.object_of(_LIFETIME | {"mode": Field(fields.one_of("implicit", "explicit"))})),
    "prompt_cache_retention": Field(fields.one_of("in_memory", "in-memory", "24h")),
    "safety_identifier": Field(fields.text),
    "service_tier": Field(fields.one_of("auto", "default", "flex", "scale", "priority", "fast", "ultrafast")),
}
OF_A_PART = {"prompt_cache_breakpoint": Field(fields.object_of(_LIFETIME | {"mode": Field(fields.one_of("explicit"))}))}
# What OpenAI's clients read out of an answer of a form, and send back beside it.
OF_AN_ANSWER = {"parsed": Field(fields.anything)}
OF_A_CALL = {"parsed_arguments": Field(fields.anything)}
