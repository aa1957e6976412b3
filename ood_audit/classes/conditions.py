"""Condition names: how and where a picture was taken or made, rather than what it shows.

Such as darkness, snow, watermark, drawing. Where two sets of pictures differ, or the pictures of one class from all
others, these are the words for what is wrong with the data; the background names (`background`) say what is in it.
"""

LIGHT = (
    *("darkness", "dusk", "sunset", "sunlight", "glare", "lens flare", "shadow", "reflection", "silhouette"),
    *("low light", "flash", "overexposure", "blur", "motion blur", "film grain"),
)
WEATHER = ("fog", "haze", "smoke", "rain", "snow", "frost", "ice", "dust", "clouds")
MARKS = (
    *("watermark", "logo", "text", "caption", "handwriting", "sign", "label", "price tag", "timestamp", "barcode"),
    *("banner", "ruler", "frame", "border"),
)
KINDS = (
    *("poster", "book page", "magazine cover", "screenshot", "computer screen", "meme", "collage", "chart", "diagram"),
    *("map", "drawing", "sketch", "line art", "cartoon", "comic", "painting", "watercolor", "oil painting"),
    *("engraving", "print", "illustration", "clip art", "3D rendering", "video game", "toy", "sculpture", "mosaic"),
    *("embroidery", "tattoo", "stamp", "postcard", "photograph", "black and white photograph", "sepia photograph"),
    *("old photograph", "negative", "x-ray", "infrared image", "thermal image", "microscope image"),
    *("satellite image", "aerial view", "close-up", "panorama", "fisheye view", "white background"),
    *("black background", "plain background"),
)
PLACES = (
    *("hand", "face", "person", "crowd", "indoors", "outdoors", "studio", "kitchen", "bedroom", "office", "room"),
    *("street", "city", "building", "forest", "beach", "ocean", "underwater", "river", "lake", "desert", "mountain"),
    *("sky", "field", "grass", "garden", "farm", "road", "stage", "museum", "shop", "table", "floor", "wall", "fence"),
    *("window", "mirror", "cage"),
)
NAMES = (*LIGHT, *WEATHER, *MARKS, *KINDS, *PLACES)
