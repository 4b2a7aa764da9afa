// What the page uses of Observable Plot; `make vendor` bundles it into plot.js.
export {plot, areaY, dot, line, rect, ruleX, ruleY} from "@observablehq/plot";
