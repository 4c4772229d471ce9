"""``rgbdseg recipes``: list the recipes, or print one as YAML."""

from __future__ import annotations

from rgbdseg.cli.common import Parser, print_table
from rgbdseg.recipes import RECIPES, describe_recipes, get_recipe


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("recipes", "List the recipes, or print one as YAML that 'rgbdseg train' accepts.")
    parser.add_argument("name", nargs="?", help="recipe to print")
    name = parser.parse_args(arguments).name
    if name:
        import yaml

        print(yaml.safe_dump(get_recipe(name).to_dict(), sort_keys=False), end="")
        return 0
    print_table("recipes", ["recipe", "what"], list(describe_recipes(sorted(RECIPES)).items()), left=2)
    return 0
