"""Chat templates in the manner of well-known models, written for these tests: only what masking has to cope with."""

CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA_LIKE = """{{ bos_token }}{% if strftime_now is defined %}{% set today = strftime_now("%d %b %Y") %}{% endif %}\
{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}\
{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}\
<|start_header_id|>system<|end_header_id|>

Today Date: {{ today }}

{{ system }}<|eot_id|>{% for message in turns %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>{% endfor %}\
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

GEMMA_LIKE = """{{ bos_token }}{% if messages[0].role == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}\
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}\
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

QWEN3_LIKE = """{% set last = namespace(query=0) %}{% for message in messages %}{% if message.role == 'user' %}\
{% set last.query = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}\
{% if message.role == 'assistant' %}{% set parts = message.content.split('</think>') %}\
<|im_start|>assistant
{% if loop.index0 > last.query %}<think>
{{ parts[0].split('<think>')[-1].strip() if parts | length > 1 else '' }}
</think>

{% endif %}{{ parts[-1].strip() }}<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

REASONER_LIKE = """{% for message in messages %}{% if message.role == 'user' %}[USER]{{ message.content }}{% else %}\
[ANSWER]{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[ANSWER]<think>
{% endif %}"""

WITHOUT_END = """{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""

LAST_USER_SYSTEM = """{% set system = messages[0].content if messages[0].role == 'system' else '' %}\
{% set turns = messages[1:] if system else messages %}{% for message in turns %}{% if message.role == 'user' %}\
[INST] {% if loop.last or (loop.index0 == turns | length - 2) %}{{ system }} {% endif %}{{ message.content }}[/INST]\
{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"""
