// Resolves bare imports, such as `ai`, in build/node, for scripts anywhere in the tree; `node --import` this.
import { registerHooks } from "node:module";

const installed = new URL("../../build/node/", import.meta.url).href;

registerHooks({
  resolve(specifier, context, next) {
    const isBare = /^@?[a-z]/.test(specifier) && !/^[a-z]+:/.test(specifier);
    const isOurs = context.parentURL && !context.parentURL.includes("/node_modules/");
    return next(specifier, isBare && isOurs ? { ...context, parentURL: installed } : context);
  },
});
