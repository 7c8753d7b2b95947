"""Mean and standard deviation of RGB 0..255 for each choice of --pixels, the scaling of pixels that enter a net."""

PIXEL_STATISTICS = {'imagenet': ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
                    'half': ((127.5,) * 3, (127.5,) * 3),
                    'clip': ((122.7709383, 116.7460125, 104.0937362), (68.5005327, 66.6321579, 70.3231630))}
