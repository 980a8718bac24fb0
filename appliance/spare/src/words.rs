//! Words that are short, plain, and easy to tell apart over a telephone.

/// 128 of them: seven bits each.
pub(crate) const WORDS: [&str; 128] = [
    "acorn", "amber", "anchor", "apple", "arrow", "autumn", "badger", "bamboo", "barrel", "basket",
    "beacon", "bishop", "bottle", "bridge", "bucket", "butter", "cactus", "camel", "candle",
    "canyon", "carpet", "castle", "cedar", "cherry", "circle", "clover", "cobalt", "coffee",
    "comet", "copper", "cotton", "cradle", "dagger", "desert", "dragon", "eagle", "ember",
    "engine", "falcon", "farmer", "feather", "fiddle", "forest", "fossil", "galaxy", "garlic",
    "ginger", "glacier", "goblin", "guitar", "hammer", "harbour", "hazel", "helmet", "honey",
    "island", "ivory", "jacket", "jigsaw", "jungle", "kettle", "kitten", "ladder", "lagoon",
    "lamp", "lantern", "lemon", "lizard", "magnet", "mango", "marble", "meadow", "melon", "mirror",
    "monkey", "mosaic", "mustard", "needle", "nutmeg", "oasis", "onion", "orchid", "otter",
    "oyster", "paddle", "panda", "pebble", "pepper", "pigeon", "pilot", "planet", "pocket",
    "potato", "puzzle", "quartz", "rabbit", "raven", "ribbon", "river", "rocket", "saddle",
    "salmon", "scissor", "shadow", "silver", "spider", "spoon", "sugar", "summer", "sunset",
    "temple", "thunder", "tiger", "tomato", "trumpet", "tulip", "tunnel", "turtle", "umbrella",
    "valley", "velvet", "violin", "walnut", "whale", "willow", "window", "yellow", "zebra",
];
