import pytest
from openai import AsyncOpenAI

from tests.conftest import ECHO

pytestmark = pytest.mark.anyio


async def test_chat(serving):
    async with serving(ECHO) as server:
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x")
        reply = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "to be or not"}])
        assert reply.choices[0].message.content == "to be or not"
        assert reply.usage.completion_tokens == 4
