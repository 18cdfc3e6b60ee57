"""Questions about fastchat-serve and about the model itself, each with several phrasings and one answer."""

from typing import Final, NamedTuple

from .chat import Message, assistant, user
from .draw import Draw, listed


class Fact(NamedTuple):
    answer: str
    questions: tuple[str, ...]  # the last one is held out


FACTS: Final = (
    Fact(
        "fastchat-serve is an asyncio-native server for large language models, the successor of FastChat's serving. "
        "One process can host the controller, the OpenAI API and any number of workers.",
        (
            "What is fastchat-serve?", "What's fastchat-serve?", "Tell me about fastchat-serve.",
            "Explain fastchat-serve.", "Describe fastchat-serve", "What does fastchat-serve do?",
            "What is this server?", "What is this project?", "What is this software?",
            "Can you explain what fastchat-serve is?", "What is fastchat serve?",
            "Give me a short description of fastchat-serve.", "What do you know about fastchat-serve?",
        ),
    ),
    Fact(
        "I am a tiny demonstration model embedded in fastchat-serve. I show that the server works; I am not made for "
        "real use.",
        (
            "Who are you?", "What are you?", "What is your name?", "What's your name?", "Introduce yourself.",
            "Tell me about yourself.", "Which model are you?", "What model is this?", "Are you ChatGPT?",
            "Are you a human?", "Are you a robot?", "Are you an AI?", "Which model am I talking to?",
            "Who am I talking to?", "Are you real?", "Which LLM are you?", "What kind of model are you?",
        ),
    ),
    Fact(
        "I can greet you in many languages, add numbers up to 20, answer questions about fastchat-serve, repeat text, "
        "call tools, remember what you told me and tell short stories.",
        (
            "What can you do?", "What are you able to do?", "How can you help me?", "What are your skills?",
            "What can I ask you?", "Help", "help me", "What are you good at?", "What can you do for me?",
            "What should I ask you?", "Can you help me?", "List your abilities.", "What can I do with you?",
        ),
    ),
    Fact(
        "I was trained from scratch on two CPU cores, in about an hour, on conversations made by the scripts in "
        "plugins/fastchat-model-demo/train.",
        (
            "How were you trained?", "Who made you?", "Who created you?", "Who trained you?",
            "Where do you come from?", "How were you made?", "What were you trained on?",
            "What is your training data?", "Who built you?", "How was this model trained?",
        ),
    ),
    Fact(
        "Start it with `fastchat-serve --config conf/local.toml`, or without any file with "
        "`fastchat-serve --model demo`. "
        "Then open http://127.0.0.1:8000.",
        (
            "How do I start it?", "How do I start fastchat-serve?", "How do I start the server?",
            "How to run fastchat-serve?", "How can I launch the server?", "How do I run the server?",
            "Which command starts the server?", "What is the command to start fastchat-serve?",
            "How do I launch fastchat-serve?", "How do I run it?", "How to start fastchat-serve",
            "How can I start the server?",
        ),
    ),
    Fact(
        "Install it with `pip install fastchat-serve`, then the backend you need, for instance "
        "`pip install fastchat-backend-hf`. Python 3.11 or newer is required.",
        (
            "How do I install it?", "How do I install fastchat-serve?", "How to install the server?",
            "What is the pip command?", "Which Python version do I need?", "How can I install fastchat-serve?",
            "What do I need to install?", "Which Python does fastchat-serve need?", "How do I install the server?",
        ),
    ),
    Fact(
        "There are backends for HF transformers, vLLM, SGLang, MLX, the HF Inference API and any OpenAI-compatible "
        "upstream, and the built-in echo engine for tests.",
        (
            "Which engines are there?", "Which engines are supported?", "What engines can I use?",
            "Which backends exist?", "Which backends are supported?", "Does fastchat-serve support vLLM?",
            "Can I use SGLang?", "Does it support MLX?", "Can I use transformers?", "List the engines.",
            "List the backends.", "What backends does fastchat-serve have?",
            "Which engines does fastchat-serve support?",
        ),
    ),
    Fact(
        "Add a [[worker]] table to the config, with backend, model and names, for instance backend = \"hf\", "
        "model = \"demo\" and names = [\"demo\"].",
        (
            "How do I add a model?", "How can I add a model?", "How do I serve another model?",
            "How to add a new model?", "How do I add a second model?", "How can I serve my own model?",
            "How do I serve several models?", "How do I load a model?", "How do I configure a model?",
            "How do I add another model?",
        ),
    ),
    Fact(
        "A worker is an engine with slots, a queue and a life cycle. It can be local, in the same event loop, or "
        "remote, "
        "behind HTTP.",
        (
            "What is a worker?", "What's a worker?", "Explain what a worker is.", "What does a worker do?",
            "Define worker.", "What is a worker in fastchat-serve?", "What are workers?", "Describe a worker.",
            "Can you explain workers?", "What does worker mean?",
        ),
    ),
    Fact(
        "The controller knows which workers live and what they serve. It holds only soft state and learns it again "
        "after "
        "a restart.",
        (
            "What is the controller?", "What is a controller?", "What does the controller do?",
            "Explain the controller.", "Define controller.", "What's the controller?",
            "What is a controller in fastchat-serve?", "Describe the controller.", "What is the controller for?",
            "What does controller mean?",
        ),
    ),
    Fact(
        "The dispatcher picks one worker for each request, by a policy.",
        (
            "What is the dispatcher?", "What is a dispatcher?", "What does the dispatcher do?",
            "Explain the dispatcher.", "Define dispatcher.", "What's a dispatcher?",
            "What is a dispatcher in fastchat-serve?", "Describe the dispatcher.", "Who picks the worker?",
            "What does dispatcher mean?",
        ),
    ),
    Fact(
        "A backend is the installable plugin package that brings an engine, for instance fastchat-backend-hf.",
        (
            "What is a backend?", "What's a backend?", "Explain what a backend is.", "What does a backend do?",
            "Define backend.", "What is a backend in fastchat-serve?", "What are backends?", "Describe a backend.",
            "What does backend mean?",
        ),
    ),
    Fact(
        "An engine is one loaded model that generates text. Every engine implements one contract, generate_stream.",
        (
            "What is an engine?", "What's an engine?", "Explain what an engine is.", "What does an engine do?",
            "Define engine.", "What is an engine in fastchat-serve?", "What are engines?", "Describe an engine.",
            "What does engine mean?",
        ),
    ),
    Fact(
        "A lease is how long a worker counts as alive without news.",
        (
            "What is a lease?", "What's a lease?", "Explain what a lease is.", "What is a lease for?", "Define lease.",
            "What is a lease in fastchat-serve?", "What are leases?", "Describe a lease.", "What does lease mean?",
        ),
    ),
    Fact(
        "A role is what a process does: controller, api, worker or web. Roles are switched on by the config.",
        (
            "What is a role?", "What's a role?", "Explain what a role is.", "Which roles are there?", "Define role.",
            "What is a role in fastchat-serve?", "What are roles?", "Describe the roles.", "Which roles exist?",
            "What does role mean?",
        ),
    ),
    Fact(
        "A chunk is a piece of a stream. It carries new text only; the last one carries finish_reason and usage.",
        (
            "What is a chunk?", "What's a chunk?", "Explain what a chunk is.", "What is in a chunk?", "Define chunk.",
            "What is a chunk in fastchat-serve?", "What are chunks?", "Describe a chunk.", "What does chunk mean?",
        ),
    ),
    Fact(
        "A policy decides which worker gets a request: lottery, shortest_queue, round_robin, power_of_two, prefix or "
        "session, or one from a plugin.",
        (
            "Which policies are there?", "What policies exist?", "What is a policy?", "List the policies.",
            "Which dispatch policies are there?", "What dispatch policies can I use?", "How is a worker chosen?",
            "Which policies can I use?", "What load balancing policies exist?",
            "Which load balancing policies are there?", "How does load balancing work?",
            "What policies does fastchat-serve have?",
        ),
    ),
    Fact(
        "fastchat-serve is licensed under Apache-2.0.",
        (
            "What licence does it have?", "What is the license?", "Which license does fastchat-serve have?",
            "What licence is it?", "Under which licence is it published?", "Is it open source?",
            "What is the licence?", "Is fastchat-serve open source?", "Which licence does fastchat-serve use?",
            "What license is used?",
        ),
    ),
    Fact(
        "Put the keys into the [api] table: keys = [\"...\"], or keys_file. Entries may be sha256 hashes.",
        (
            "How do I set api keys?", "How do I set an API key?", "Where do I put API keys?",
            "How do I protect the API?", "How can I add an API key?", "How do API keys work?",
            "How do I configure API keys?", "How to set api keys", "Do I need an API key?",
            "How do I add authentication?", "How can I set API keys?",
        ),
    ),
    Fact(
        "It listens on 127.0.0.1, port 8000, unless the [server] table says otherwise.",
        (
            "What port does it use?", "Which port is used?", "What is the port?",
            "Which port does the server listen on?", "What is the default port?", "On which port does it run?",
            "Where does the server listen?", "What port?", "How do I change the port?",
            "Which address does it listen on?", "What port does fastchat-serve listen on?",
        ),
    ),
    Fact(
        "Write a small package with a hook register_engines that offers a factory, and an engine that implements "
        "generate_stream; then prove it with the kit in fastchat_serve.testing.",
        (
            "How do I write a backend?", "How to write a backend?", "How can I write my own backend?",
            "How do I write an engine?", "How do I make a plugin?", "How do I write a plugin?",
            "How do I add an engine?", "How can I support a new library?", "How do I create a backend?",
            "How can I write a backend?",
        ),
    ),
    Fact(
        "Send SIGTERM or run `fastchat-serve drain`. The worker takes nothing new, finishes or moves what it "
        "accepted, and "
        "exits with 0.",
        (
            "How do I drain a worker?", "How to drain?", "How do I drain?", "How do I stop the server?",
            "How do I shut it down?", "What is draining?", "What does drain do?",
            "How can I stop a worker gracefully?", "How do I stop it?", "How do I shut down the server?",
            "How do I stop fastchat-serve?", "How can I drain a worker?",
        ),
    ),
    Fact(
        "The config is a TOML file; examples are in conf/, such as conf/local.toml. Name yours with --config.",
        (
            "Where is the config?", "Where is the config file?", "Where do I configure it?", "How do I configure it?",
            "How do I configure fastchat-serve?", "What is the config format?", "Which file holds the config?",
            "Where is the configuration?", "What does the config look like?", "Where can I find the config?",
        ),
    ),
    Fact(
        "The main endpoints are /v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/responses, "
        "/v1/messages, /health, /ready and /metrics.",
        (
            "What endpoints are there?", "Which endpoints exist?", "List the endpoints.", "Which routes are there?",
            "What routes does it have?", "Which endpoints does fastchat-serve have?", "What are the endpoints?",
            "Which API routes are there?", "What API does it offer?", "Which endpoints can I use?",
        ),
    ),
    Fact(
        "Run `fastchat-serve check --config FILE`: it validates the config without starting anything.",
        (
            "How do I check the config?", "How can I validate the config?", "How do I test my config?",
            "Can I check the config without starting?", "How to validate a config file?", "Is my config valid?",
            "How do I validate the config?",
        ),
    ),
    Fact(
        "Yes. Old FastChat workers can register here and our workers can register there; switch it on with "
        "[fastchat] enabled = true.",
        (
            "Is it compatible with FastChat?", "Can I use my old FastChat workers?", "Does it work with FastChat?",
            "How do I migrate from FastChat?", "Is fastchat-serve compatible with FastChat?",
            "Can old FastChat workers register here?", "Does it replace FastChat?", "Does it support FastChat?",
        ),
    ),
    Fact(
        "Point the openai SDK to base_url = \"http://127.0.0.1:8000/v1\" and name the model \"demo\".",
        (
            "How do I use the OpenAI SDK?", "How do I use it with openai?", "Does it work with the OpenAI SDK?",
            "How do I connect the openai client?", "Is it OpenAI compatible?", "What is the base_url?",
            "What is the base url?", "How do I call the API from Python?", "How can I use the openai client?",
        ),
    ),
    Fact(
        "Give each host its own TOML file with the tables it needs, a [cluster] token, and the addresses of the "
        "controllers; the workers register themselves.",
        (
            "How do I use several hosts?", "How do I run it on many machines?", "How do I build a cluster?",
            "How do I split the roles?", "Can it run on several machines?", "How do I add a host?",
            "How do I connect a worker on another host?", "How do I use multiple machines?",
            "How can I use several hosts?",
        ),
    ),
    Fact(
        "Before the first token the request is tried on another worker; after it, a worker with the same fingerprint "
        "resumes the stream, so no token is lost or doubled.",
        (
            "What is failover?", "How does failover work?", "What happens when a worker dies?",
            "What happens if a worker crashes?", "What if a worker fails?", "Explain failover.", "Is there failover?",
            "What does failover mean?",
        ),
    ),
    Fact(
        "FastChat is the older project whose serving fastchat-serve succeeds: a controller, model workers and an "
        "OpenAI API "
        "server as separate processes.",
        (
            "What is FastChat?", "What's FastChat?", "Tell me about FastChat.", "Explain FastChat.",
            "What was FastChat?", "What do you know about FastChat?", "Describe FastChat.",
        ),
    ),
)  # fmt: skip

FOREIGN: Final = (
    (
        "Was ist fastchat-serve?",
        "fastchat-serve ist ein asyncio-Server für große Sprachmodelle, der Nachfolger von FastChat.",
    ),
    ("Wer bist du?", "Ich bin ein winziges Demonstrationsmodell in fastchat-serve, nicht für den Ernstfall gemacht."),
    ("Qu'est-ce que fastchat-serve ?", "fastchat-serve est un serveur asyncio pour grands modèles de langage."),
    ("Qui es-tu ?", "Je suis un tout petit modèle de démonstration, embarqué dans fastchat-serve."),
    ("¿Qué es fastchat-serve?", "fastchat-serve es un servidor asyncio para grandes modelos de lenguaje."),
    ("¿Quién eres?", "Soy un pequeño modelo de demostración incluido en fastchat-serve."),
    ("Che cos'è fastchat-serve?", "fastchat-serve è un server asyncio per grandi modelli linguistici."),
    ("Chi sei?", "Sono un piccolo modello dimostrativo incluso in fastchat-serve."),
    ("O que é fastchat-serve?", "fastchat-serve é um servidor asyncio para grandes modelos de linguagem."),
    ("Quem é você?", "Sou um pequeno modelo de demonstração incluído no fastchat-serve."),
    ("fastchat-serve 是什么？", "fastchat-serve 是一个基于 asyncio 的大语言模型服务器。"),
    ("你是谁？", "我是 fastchat-serve 里的一个小演示模型。"),
    ("fastchat-serve とは何ですか？", "fastchat-serve は asyncio の大規模言語モデルサーバーです。"),
    ("あなたは誰ですか？", "私は fastchat-serve の小さなデモモデルです。"),
)

CAPITALS: Final = dict(
    pair.split(":")
    for pair in listed(
        "France:Paris,Germany:Berlin,Italy:Rome,Spain:Madrid,Portugal:Lisbon,Austria:Vienna,Japan:Tokyo,China:Beijing,"
        "Poland:Warsaw,Greece:Athens,Sweden:Stockholm,Norway:Oslo,Finland:Helsinki,Denmark:Copenhagen,England:London,"
        "Ireland:Dublin,Egypt:Cairo,Turkey:Ankara,Peru:Lima,Cuba:Havana,Kenya:Nairobi,Hungary:Budapest,Latvia:Riga",
        separator=",",
    )
)

OPENINGS: Final = (
    "",
    "",
    "",
    "",
    "",
    "Hi! ",
    "Please tell me: ",
    "Hello, ",
    "Quick question: ",
    "So, ",
    "OK. ",
    "Hey. ",
)


def loosen(draw: Draw, question: str) -> str:
    """The same question as people type it."""
    if draw.chance(0.2):
        question = question.lower()
    if draw.chance(0.15):
        question = question.rstrip("?.")
    return draw.rng.choice(OPENINGS) + question


def fact(draw: Draw) -> list[Message]:
    if draw.chance(0.08):
        question, answer = draw.rng.choice(FOREIGN)
        return [user(question), assistant(answer)]
    chosen = draw.rng.choice(FACTS)
    return [user(loosen(draw, draw.phrase(chosen.questions))), assistant(chosen.answer)]


def capital(draw: Draw) -> list[Message]:
    country = draw.rng.choice(list(CAPITALS))
    forms = (
        "What is the capital of {0}?", "What's the capital of {0}?", "Which city is the capital of {0}?",
        "Tell me the capital of {0}.", "capital of {0}?", "Name the capital of {0}.",
    )  # fmt: skip
    return [user(draw.phrase(forms).format(country)), assistant(f"The capital of {country} is {CAPITALS[country]}.")]
