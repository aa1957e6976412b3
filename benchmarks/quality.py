"""Faults of pictures that were planted, and how many of them `report` finds."""
import random
from pathlib import Path
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
EACH = 40

def dark(picture, dice):
    return picture.point(lambda v, k=dice.uniform(0.04, 0.15): v * k)

def bright(picture, dice):
    return picture.point(lambda v, k=dice.uniform(0.04, 0.15): 255 - (255 - v) * k)

def low_contrast(picture, dice):
    middle = dice.uniform(90, 165)
    return picture.point(lambda v, k=dice.uniform(0.06, 0.15): middle + (v - 128) * k)

def blurred(picture, dice):
    return picture.filter(ImageFilter.GaussianBlur(dice.uniform(0.012, 0.03) * max(picture.size)))

def little_information(picture, dice):
    colour = tuple(dice.randrange(40, 216) for _ in range(3))
    plain = Image.new("RGB", picture.size, colour)
    if dice.random() < 0.5:
        plain.paste(tuple(dice.randrange(40, 216) for _ in range(3)), (0, 0, picture.width // 2, picture.height))
    return plain

def odd_size(picture, dice):
    k = dice.uniform(0.06, 0.12) if dice.random() < 0.5 else dice.uniform(7, 9)
    return picture.resize((max(1, round(k * picture.width)), max(1, round(k * picture.height))))

def odd_aspect_ratio(picture, dice):
    w, h = picture.size
    k = dice.uniform(0.1, 0.18)
    if dice.random() < 0.5:
        return picture.crop((0, round(h*.4), w, round(h*.4) + max(2, round(k * h)))).resize((w*1, max(2, round(k*h))))
    return picture.crop((round(w*.4), 0, round(w*.4) + max(2, round(k * w)), h))

def grey(picture, dice):
    return picture.convert("L")
FAULTS = {"dark": dark, "bright": bright, "low contrast": low_contrast, "blurred": blurred, "little information": little_information, "odd size": odd_size, "odd aspect ratio": odd_aspect_ratio, "grey": grey}
