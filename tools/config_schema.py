"""Write configs/schema.json, from which editors complete and check the keys of YAML files; after a change of a key."""

from _common import parser, run


def main() -> None:
    parser(__doc__).parse_args()

    from fastrcnn.config_files import configs_folder, json_schema
    from fastrcnn.files import write_json

    path = configs_folder() / "schema.json"
    write_json(path, json_schema())
    print(path)


if __name__ == "__main__":
    run(main)
