"""Nets without a head, such as the backbones of timm, torchvision, DINO, open-metric-learning and MegaDescriptor.

Licences differ from file to file.
"""
HEADS = ('features',)
SETTINGS = {'resize': 'bilinear', 'jpeg': 'accurate', 'metric': 'cosine'}


def recognises(held, prefix):
    """Return False: this origin is taken where no other recognises a file."""
    return False
