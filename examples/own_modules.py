"""Three of your own networks on your own data set; the last one is kept. Prints its test accuracy."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import coterie


def make_net(width: int) -> nn.Module:
    """Any module with a final linear layer will do."""
    conv = nn.Conv2d(1, width, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 2))


def main() -> None:
    """Tell stripes from blobs."""
    torch.manual_seed(0)
    labels = torch.randint(2, (600,))
    stripes = (torch.arange(8) % 2).float().expand(600, 1, 8, 8)
    images = torch.where(labels.view(-1, 1, 1, 1) == 1, stripes, 0.5) + 0.5 * torch.randn(600, 1, 8, 8)
    train_set, test_set = TensorDataset(images[:400], labels[:400]), TensorDataset(images[400:], labels[400:])

    nets = [make_net(16), make_net(8), make_net(2)]
    settings = {"epochs": 20, "optim.lr": 0.3, "data.batch_size": 50}
    outcome = coterie.train(nets, train_set, test_set, method="mcl_okd", settings=settings)
    print(f"leader: {outcome.result['last']['test']['leader']['top1']:.1f} %, kept in {outcome.folder}")
    torch.save(outcome.leader.state_dict(), outcome.folder / "mine.pt")


if __name__ == "__main__":
    main()
