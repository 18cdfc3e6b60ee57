"""Greetings, thanks and goodbyes in many languages; the reply comes in the language it was asked in."""

from typing import Final, NamedTuple

from .chat import Message, assistant, user
from .draw import Draw


class Language(NamedTuple):
    hellos: str  # alternatives are separated by "/"
    hello: str
    how_are_you: str
    fine: str
    thanks: str
    welcome: str
    byes: str
    bye: str


LANGUAGES: Final = (
    Language(
        "Hello/Hi/Hey/Hello there/Hi there/Good morning/Good evening/Good afternoon/Greetings/Howdy/Hey there",
        "Hello! I am the demonstration model of fastchat-serve. How can I help you?",
        "How are you?/How are you doing?/How is it going?/How do you do?/How are you today?",
        "I am well, thank you! What can I do for you?",
        "Thank you/Thanks/Thanks a lot/Thank you very much/Many thanks",
        "You are welcome!",
        "Goodbye/Bye/See you/See you later/Good night/Bye bye",
        "Goodbye! Have a nice day.",
    ),
    Language(
        "Hallo/Guten Tag/Guten Morgen/Guten Abend/Servus/Moin/Grüß Gott/Hallo zusammen",
        "Hallo! Ich bin das Demonstrationsmodell von fastchat-serve. Wie kann ich helfen?",
        "Wie geht es dir?/Wie geht es Ihnen?/Wie geht's?/Wie gehts dir?/Wie läuft es?",
        "Mir geht es gut, danke! Was kann ich tun?",
        "Danke/Vielen Dank/Danke schön/Danke sehr/Herzlichen Dank",
        "Gern geschehen!",
        "Tschüss/Auf Wiedersehen/Bis bald/Gute Nacht/Bis später",
        "Auf Wiedersehen! Einen schönen Tag noch.",
    ),
    Language(
        "Bonjour/Salut/Bonsoir/Coucou/Bonjour à tous",
        "Bonjour ! Je suis le modèle de démonstration de fastchat-serve. Comment puis-je vous aider ?",
        "Comment ça va ?/Ça va ?/Comment allez-vous ?/Comment vas-tu ?/Tu vas bien ?",
        "Je vais bien, merci ! Que puis-je faire pour vous ?",
        "Merci/Merci beaucoup/Merci bien/Un grand merci",
        "Je vous en prie !",
        "Au revoir/À bientôt/Bonne nuit/À plus tard",
        "Au revoir ! Bonne journée.",
    ),
    Language(
        "Hola/Buenos días/Buenas tardes/Buenas noches/Hola amigo/Muy buenas",
        "¡Hola! Soy el modelo de demostración de fastchat-serve. ¿En qué puedo ayudarte?",
        "¿Cómo estás?/¿Qué tal?/¿Cómo está usted?/Como estas/¿Cómo te va?",
        "Estoy bien, ¡gracias! ¿Qué puedo hacer por ti?",
        "Gracias/Muchas gracias/Mil gracias/Muchísimas gracias",
        "¡De nada!",
        "Adiós/Hasta luego/Hasta pronto/Nos vemos/Hasta mañana",
        "¡Adiós! Que tengas un buen día.",
    ),
    Language(
        "Ciao/Buongiorno/Buonasera/Salve/Ciao a tutti",
        "Ciao! Sono il modello dimostrativo di fastchat-serve. Come posso aiutarti?",
        "Come stai?/Come va?/Come sta?/Come ti va?/Tutto bene?",
        "Sto bene, grazie! Che cosa posso fare per te?",
        "Grazie/Grazie mille/Molte grazie/Ti ringrazio",
        "Prego!",
        "Arrivederci/A presto/Buonanotte/Ci vediamo",
        "Arrivederci! Buona giornata.",
    ),
    Language(
        "Olá/Oi/Bom dia/Boa tarde/Boa noite/Olá pessoal",
        "Olá! Sou o modelo de demonstração do fastchat-serve. Como posso ajudar?",
        "Como vai?/Tudo bem?/Como você está?/Como estás tu?/Como vai você?",
        "Estou bem, obrigado! O que posso fazer por você?",
        "Obrigado/Muito obrigado/Obrigada/Valeu",
        "De nada, é um prazer!",
        "Tchau/Até logo/Até amanhã/Até mais",
        "Até logo! Tenha um bom dia.",
    ),
    Language(
        "Hoi/Goedemorgen/Goedendag/Goedenavond/Hallo daar",
        "Hoi! Ik ben het demonstratiemodel van fastchat-serve. Hoe kan ik helpen?",
        "Hoe gaat het?/Hoe gaat het met je?/Hoe is het?/Alles goed?",
        "Het gaat goed, dank je! Wat kan ik voor je doen?",
        "Dank je/Dank je wel/Bedankt/Dank u wel",
        "Graag gedaan!",
        "Tot ziens/Doei/Tot later/Tot morgen",
        "Tot ziens! Nog een fijne dag.",
    ),
    Language(
        "Hej/God morgon/God dag/Hejsan/Tjena",
        "Hej! Jag är demonstrationsmodellen i fastchat-serve. Hur kan jag hjälpa dig?",
        "Hur mår du?/Hur är det?/Hur går det?/Läget?",
        "Jag mår bra, tack! Vad kan jag göra för dig?",
        "Tack/Tack så mycket/Stort tack/Tusen tack",
        "Varsågod!",
        "Hej då/Vi ses/God natt/Adjö",
        "Hej då! Ha en fin dag.",
    ),
    Language(
        "Cześć/Dzień dobry/Dobry wieczór/Hejka/Witaj",
        "Cześć! Jestem modelem demonstracyjnym fastchat-serve. W czym mogę pomóc?",
        "Jak się masz?/Co słychać?/Jak leci?/Jak się Pan ma?",
        "Dobrze, dziękuję! Co mogę dla ciebie zrobić?",
        "Dziękuję/Dzięki/Dziękuję bardzo/Wielkie dzięki",
        "Nie ma za co!",
        "Do widzenia/Na razie/Dobranoc/Pa",
        "Do widzenia! Miłego dnia.",
    ),
    Language(
        "Привет/Здравствуйте/Добрый день/Доброе утро/Добрый вечер",
        "Привет! Я демонстрационная модель fastchat-serve. Чем могу помочь?",
        "Как дела?/Как ты?/Как поживаешь?/Как вы?",
        "Хорошо, спасибо! Что я могу сделать?",
        "Спасибо/Большое спасибо/Благодарю/Спасибо большое",
        "Пожалуйста!",
        "Пока/До свидания/До встречи/Всего доброго",
        "До свидания! Хорошего дня.",
    ),
    Language(
        "你好/您好/早上好/晚上好/嗨/大家好",
        "你好！我是 fastchat-serve 的演示模型。有什么可以帮您？",
        "你好吗？/你怎么样？/最近好吗？/您好吗？",
        "我很好，谢谢！我能为您做什么？",
        "谢谢/谢谢你/多谢/非常感谢",
        "不客气！",
        "再见/拜拜/晚安/回头见",
        "再见！祝您愉快。",
    ),
    Language(
        "こんにちは/おはよう/おはようございます/こんばんは/やあ/どうも",
        "こんにちは！私は fastchat-serve のデモモデルです。ご用件は何ですか？",
        "お元気ですか？/元気？/元気ですか？/調子はどう？",
        "元気です、ありがとう！何をしましょうか？",
        "ありがとう/ありがとうございます/どうもありがとう/感謝します",
        "どういたしまして！",
        "さようなら/またね/おやすみなさい/バイバイ",
        "さようなら！良い一日を。",
    ),
    Language(
        "안녕하세요/안녕/여보세요/반갑습니다",
        "안녕하세요! 저는 fastchat-serve의 데모 모델입니다. 무엇을 도와드릴까요?",
        "어떻게 지내세요?/잘 지내?/잘 지내세요?/요즘 어때요?",
        "잘 지내요, 고맙습니다! 무엇을 할까요?",
        "감사합니다/고마워요/고맙습니다/고마워",
        "천만에요!",
        "안녕히 계세요/잘 가/안녕히 가세요/또 봐요",
        "안녕히 계세요! 좋은 하루 되세요.",
    ),
    Language(
        "مرحبا/السلام عليكم/أهلا/صباح الخير/مساء الخير",
        "مرحبا! أنا النموذج التجريبي في fastchat-serve. كيف أساعدك؟",
        "كيف حالك؟/كيف الحال؟/كيف أنت؟/كيف حالك اليوم؟",
        "أنا بخير، شكرا! ماذا أفعل لك؟",
        "شكرا/شكرا جزيلا/شكرا لك/ألف شكر",
        "عفوا!",
        "وداعا/مع السلامة/إلى اللقاء/تصبح على خير",
        "مع السلامة! يوما سعيدا.",
    ),
    Language(
        "नमस्ते/नमस्कार/सुप्रभात/प्रणाम",
        "नमस्ते! मैं fastchat-serve का डेमो मॉडल हूँ। मैं क्या मदद करूँ?",
        "आप कैसे हैं?/कैसे हो?/क्या हाल है?/तुम कैसे हो?",
        "मैं ठीक हूँ, धन्यवाद! मैं क्या करूँ?",
        "धन्यवाद/शुक्रिया/बहुत धन्यवाद/बहुत शुक्रिया",
        "आपका स्वागत है!",
        "अलविदा/फिर मिलेंगे/शुभ रात्रि/विदा",
        "अलविदा! आपका दिन शुभ हो।",
    ),
    Language(
        "Merhaba/Selam/Günaydın/İyi akşamlar/İyi günler",
        "Merhaba! Ben fastchat-serve gösterim modeliyim. Nasıl yardımcı olabilirim?",
        "Nasılsın?/Nasılsınız?/Ne haber?/Naber?",
        "İyiyim, teşekkürler! Ne yapabilirim?",
        "Teşekkürler/Teşekkür ederim/Sağ ol/Çok teşekkürler",
        "Rica ederim!",
        "Hoşça kal/Güle güle/Görüşürüz/İyi geceler",
        "Güle güle! İyi günler.",
    ),
    Language(
        "Γεια σου/Γεια/Καλημέρα/Καλησπέρα/Χαίρετε",
        "Γεια σου! Είμαι το μοντέλο επίδειξης του fastchat-serve. Πώς μπορώ να βοηθήσω;",
        "Τι κάνεις;/Πώς είσαι;/Τι κάνετε;/Πώς πάει;",
        "Είμαι καλά, ευχαριστώ! Τι να κάνω για σένα;",
        "Ευχαριστώ/Σε ευχαριστώ/Ευχαριστώ πολύ/Ευχαριστούμε",
        "Παρακαλώ!",
        "Αντίο/Τα λέμε/Καληνύχτα/Στο καλό",
        "Αντίο! Καλή σου μέρα.",
    ),
)


def exchange(draw: Draw, language: Language) -> tuple[str, str]:
    roll = draw.rng.random()
    if roll < 0.5:
        return draw.rng.choice(language.hellos.split("/")), language.hello
    if roll < 0.7:
        return draw.rng.choice(language.how_are_you.split("/")), language.fine
    if roll < 0.85:
        return draw.rng.choice(language.thanks.split("/")), language.welcome
    return draw.rng.choice(language.byes.split("/")), language.bye


def greeting(draw: Draw) -> list[Message]:
    """One greeting; held out are not the words but what surrounds them."""
    language = LANGUAGES[0] if draw.chance(0.25) else draw.rng.choice(LANGUAGES)
    asked, reply = exchange(draw, language)
    endings = ("", "", "!", "!", ".", " 👋", "!!", " 🙂", "...", " !", " 😊!")
    if asked[-1] not in "?？;؟":
        asked += draw.phrase(endings)
    elif draw.chance(0.3):
        hello = draw.rng.choice(language.hellos.split("/"))
        asked = f"{hello}{draw.phrase(('! ', ', ', '. ', ' '))}{asked}"
    if draw.chance(0.25):
        asked = asked.lower()
    elif draw.chance(0.05):
        asked = asked.upper()
    return [user(asked), assistant(reply)]
