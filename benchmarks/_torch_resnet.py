"""The same net, loss and optimizer in PyTorch, for comparison; the stride 2 of a block sits in its last unit here too."""
import torch
from torch import nn


def conv_bn(inputs, outputs, size, stride=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs))


class Unit(nn.Module):
    def __init__(self, inputs, depth, stride):
        super().__init__()
        self.shortcut = conv_bn(inputs, depth, 1) if inputs != depth else nn.MaxPool2d(1, stride)
        self.residual = nn.Sequential(conv_bn(inputs, depth // 4, 1), nn.ReLU(), conv_bn(depth // 4, depth // 4, 3, stride),
                                      nn.ReLU(), conv_bn(depth // 4, depth, 1))

    def forward(self, images):
        return torch.relu(self.shortcut(images) + self.residual(images))


def resnet_50(embedding_dim):
    layers = [conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for depth, units, last_stride in ((256, 3, 2), (512, 4, 2), (1024, 6, 2), (2048, 3, 1)):
        for unit in range(units):
            layers.append(Unit(inputs, depth, last_stride if unit == units - 1 else 1))
            inputs = depth
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1024, bias=False),
                         nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, embedding_dim))


def training(images, pids, embedding_dim, net=None):
    net = (net or resnet_50(embedding_dim)).train()
    adam = torch.optim.Adam(net.parameters(), 3e-4)
    images, pids = torch.from_numpy(images).permute(0, 3, 1, 2) / 255, torch.from_numpy(pids)
    same = pids[:, None] == pids[None]

    def step():
        emb = net(images)
        dists = torch.sqrt(((emb[:, None] - emb[None]) ** 2).sum(-1) + 1e-12)
        furthest_positive = torch.where(same, dists, 0).amax(1)
        closest_negative = torch.where(same, torch.inf, dists).amin(1)
        loss = nn.functional.softplus(furthest_positive - closest_negative).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.item()

    return step


def embedding(images, embedding_dim, net=None):
    net = (net or resnet_50(embedding_dim)).eval()
    images = torch.from_numpy(images).permute(0, 3, 1, 2) / 255

    @torch.inference_mode()
    def embed():
        return net(images).numpy()

    return embed
