"""ViT-B/16 in PyTorch, for comparison: with its fused attention, and weights under timm's names."""
import torch
from torch import nn

import _torch_resnet

WIDTH, HEADS, DEPTH, PATCH = 768, 12, 12, 16


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, rows):
        batch, tokens, _ = rows.shape
        q, k, v = self.qkv(rows).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, WIDTH))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
        self.attn = Attention()
        self.mlp = nn.Sequential()
        self.mlp.fc1, self.mlp.act, self.mlp.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, rows):
        rows = rows + self.attn(self.norm1(rows))
        return rows + self.mlp(self.norm2(rows))


class ViT(nn.Module):
    """Images [B, 3, H, W] from -1 to 1 -> class token [B, 768]."""

    def __init__(self, height, width):
        super().__init__()
        self.patch_embed = nn.Sequential()
        self.patch_embed.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + (height // PATCH) * (width // PATCH), WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, 1e-6)

    def forward(self, images):
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        rows = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        return self.norm(self.blocks(rows))[:, 0]


def network(images, embedding_dim):
    return nn.Sequential(ViT(*images.shape[1:3]), nn.Linear(WIDTH, 1024, bias=False), nn.BatchNorm1d(1024), nn.ReLU(),
                         nn.Linear(1024, embedding_dim))


def training(images, pids, embedding_dim):
    return _torch_resnet.training(images, pids, embedding_dim, network(images, embedding_dim))


def embedding(images, embedding_dim):
    return _torch_resnet.embedding(images, embedding_dim, network(images, embedding_dim))
